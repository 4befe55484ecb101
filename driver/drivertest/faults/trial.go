package faults

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// Trial is one driver under one fault. Make it with [NewTrial] and end it with
// Judge. Its methods may be called from several goroutines.
type Trial struct {
	testing.TB
	World World
	Place Place
	Fault string

	ledger    *Ledger
	folder    string
	journal   *journal
	began     time.Time
	hits      int // kills and other faults, for the table
	note      string
	throttled bool
	late      bool // a second subscription takes part

	mu        sync.Mutex
	started   int
	processes []*Process
	readers   []*reader
	entries   []entry
	counts    map[string]int  // by process/word, and by word
	published map[string]Step // that are certain
	finished  map[string]bool
}

// NewTrial makes a place for one trial of a world. What is still running at the
// end of the test is killed.
func NewTrial(t testing.TB, ledger *Ledger, world World, fault string) *Trial {
	t.Helper()
	folder := t.TempDir()
	j, err := openJournal(filepath.Join(folder, "trial"+journalSuffix))
	if err != nil {
		t.Fatal(err)
	}
	trial := &Trial{
		TB: t, World: world, Fault: fault, Place: world.Prepare(t), ledger: ledger, folder: folder, journal: j, began: time.Now(),
		counts: make(map[string]int), published: make(map[string]Step), finished: make(map[string]bool),
	}
	trial.follow("trial")
	t.Cleanup(func() {
		for _, p := range trial.all() {
			if !p.Gone() {
				_ = p.command.Process.Kill()
				<-p.ended
			}
			if t.Failed() && p.output.Len() > 0 {
				t.Logf("%s:\n%s", p.Process, p.Output())
			}
		}
	})
	return trial
}

func (t *Trial) all() []*Process {
	t.mu.Lock()
	defer t.mu.Unlock()
	return append([]*Process(nil), t.processes...)
}

// Hit counts that a fault has happened, for the table.
func (t *Trial) Hit() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.hits++
}

func (t *Trial) follow(process string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.readers = append(t.readers, &reader{path: journalPath(t.folder, process), process: process})
}

// read takes over what the journals have grown by.
func (t *Trial) read() {
	t.Helper()
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, r := range t.readers {
		entries, err := r.read()
		if err != nil {
			t.Fatal(err)
		}
		t.entries = append(t.entries, entries...)
		for _, e := range entries {
			t.counts[e.process+"/"+e.word]++
			t.counts[e.word]++
			switch e.word {
			case wordStored:
				t.publish(e.place)
			case wordHandled, wordDeduplicated, wordDead:
				t.finished[e.id] = true
			}
		}
	}
}

// publish takes note of an event that is certain, once for each subscription.
func (t *Trial) publish(s Step) {
	t.published[s.ID] = s
	if t.late {
		t.published[LateSubscription+s.ID] = Step{LateSubscription + s.ID, LateSubscription + s.Aggregate, s.Number}
	}
}

// mostOpen is how far publishers that go on until they are stopped may be ahead of
// the handlers: a trial is about its fault, and not about catching up.
const mostOpen = 500

// throttle lets such publishers wait, and go on.
func (t *Trial) throttle() {
	if t.World.AtMostOnce || t.World.Weaker || t.World.OneProcess {
		return // what is lost there would be waited for
	}
	t.mu.Lock()
	wait := len(t.published)-len(t.finished) > mostOpen
	changed := wait != t.throttled
	t.throttled = wait
	t.mu.Unlock()
	if !changed {
		return
	}
	for _, p := range t.all() {
		if (p.Role == Publisher || p.Role == Both) && p.Load.Events == 0 && !p.Gone() {
			p.Turn(PublishingWaits, wait)
		}
	}
}

// Published and Finished count different events so far.
func (t *Trial) Published() int {
	t.read()
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.published)
}

// Finished counts different events that were handled or became dead letters.
func (t *Trial) Finished() int {
	t.read()
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.finished)
}

// Told counts how often a process has written a word into its journal, or any
// process where it is nil.
func (t *Trial) Told(by *Process, word string) int {
	t.read()
	return t.told(by, word)
}

func (t *Trial) told(by *Process, word string) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	if by == nil {
		return t.counts[word]
	}
	return t.counts[by.Process+"/"+word]
}

// State says in a line where the trial is.
func (t *Trial) State() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	open := 0
	for id := range t.published {
		if !t.finished[id] {
			open++
		}
	}
	return fmt.Sprintf("%d published, %d finished, %d open, %d dead", len(t.published), len(t.finished), open, t.counts[wordDead])
}

// Drain waits until everything that was published is finished, or the patience is
// over, which is not an error yet: the ledger counts.
func (t *Trial) Drain(patience time.Duration) {
	t.Helper()
	t.read()
	t.askCommitted()
	drained := t.Wait(patience, func() bool {
		t.mu.Lock()
		defer t.mu.Unlock()
		for id := range t.published {
			if !t.finished[id] {
				return false
			}
		}
		return true
	})
	if !drained && os.Getenv(variableKeep) != "" {
		for _, p := range t.all() { // where they are stuck is worth more than their good end
			if !p.Gone() {
				_ = p.command.Process.Signal(signalDump)
				<-p.ended
				t.Logf("%s:\n%s", p.Process, p.output)
			}
		}
	}
}

// variableKeep names a folder for the journals of trials that failed.
const variableKeep = "TIDINGS_FAULTS_KEEP"

// askCommitted asks the application's database what was committed, where there
// are transactions: it knows better than the publishers that died.
func (t *Trial) askCommitted() (transactions bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 30*time.Second)
	defer cancel()
	parts, err := t.World.Enter(ctx, t.Place, &Trap{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = parts.Driver.Close(ctx)
		if parts.Close != nil {
			parts.Close()
		}
	}()
	if parts.Committed == nil {
		return false
	}
	steps, err := parts.Committed(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.published = make(map[string]Step, len(steps))
	for _, s := range steps {
		t.publish(s)
	}
	return true
}

// Judge stops what still runs, gives the journals to the ledger and returns what
// it counts.
func (t *Trial) Judge() Verdict {
	t.Helper()
	var stopping sync.WaitGroup
	for _, p := range t.all() {
		if !p.Gone() {
			stopping.Go(p.Stop)
		}
	}
	stopping.Wait()
	t.read()
	transactions := t.askCommitted()
	var effects map[string]int
	if t.World.Effects != nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 30*time.Second)
		defer cancel()
		var err error
		if effects, err = t.World.Effects(ctx, t.Place); err != nil {
			t.Fatal(err)
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	run := fmt.Sprintf("%s/%s/%d", t.World.Name, t.Fault, t.began.UnixNano())
	session := time.Duration(0)
	if t.World.Unnoticed {
		session = t.World.Session
	}
	v, err := t.ledger.enter(run, t.entries, t.published, transactions, session, effects)
	if err != nil {
		t.Fatal(err)
	}
	v.Driver, v.Fault, v.Hits, v.Took = t.World.Name, t.Fault, t.hits, time.Since(t.began)
	t.Logf("%s, %s: %v", v.Driver, v.Fault, v)
	if v.Lost > 0 || v.Disordered > 0 || v.DoubleEffects > 0 || v.Phantoms > 0 {
		t.keep()
	}
	return v
}

// keep copies the journals to where a person can read them.
func (t *Trial) keep() {
	to := os.Getenv(variableKeep)
	if to == "" {
		t.Logf("set %s to a folder to keep the journals", variableKeep)
		return
	}
	to = filepath.Join(to, strings.ReplaceAll(t.World.Name+"-"+t.Fault, " ", "-"))
	if err := os.CopyFS(to, os.DirFS(t.folder)); err != nil {
		t.Log(err)
	}
}
