package drivertest

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/internal/testtime"
)

// Killing is a test in which instances of a subscription are processes of their
// own, which are killed (SIGKILL) and replaced while they work. The test binary's
// TestMain calls [Main].
type Killing struct {
	// Open makes the driver of one process. In another process it is what Main
	// was given.
	Open func(namespace string) (driver.Driver, error)
	// Namespace is told to every process.
	Namespace string
	// Events and Aggregates say how much is published. They default to 10 000
	// and 500.
	Events, Aggregates int
	// Instances run at once, 3 by default, and Kills of them are killed, 6 by
	// default.
	Instances, Kills int
	// Ordered holds the driver to the order of each aggregate.
	Ordered bool
	// Patience is how long all of it may take, multiplied by TIDINGS_TEST_SCALE. 0
	// means five minutes.
	Patience time.Duration
}

// Killed is what came of it.
type Killed struct {
	Published int
	Kills     int
	// Lost were published and never handled, and Dead became dead letters.
	Lost, Dead int
	// Disordered were started for the first time before an earlier event of
	// their aggregate was finished for the first time.
	Disordered int
	// Duplicates were handled again after they had been handled.
	Duplicates int
	// Overlaps ran while another of their aggregate ran, in another process.
	Overlaps int
	Took     time.Duration
}

const variableInstance = "TIDINGS_TEST_INSTANCE" // the namespace, in a process that is an instance

// Main runs the tests of a package, or one instance of a [Killing] where the
// process was started as such. It does not return.
func Main(m *testing.M, open func(namespace string) (driver.Driver, error)) {
	namespace, found := os.LookupEnv(variableInstance)
	if !found {
		os.Exit(m.Run())
	}
	if err := runInstance(namespace, open); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// Lines that an instance writes: a word, the aggregate, the number and the time.
const (
	lineBegin = "begin"
	lineEnd   = "end"
	lineDead  = "dead"
)

var lines sync.Mutex

func writeLine(word, aggregate string, number int) {
	lines.Lock()
	defer lines.Unlock()
	fmt.Printf("%s %s %d %d\n", word, aggregate, number, time.Now().UnixNano())
}

type tellDead struct{}

// Observe implements [tidings.Observer].
func (tellDead) Observe(_ context.Context, at tidings.Observation) {
	if at.Kind == tidings.DeadLettered {
		writeLine(lineDead, at.ID, 0)
	}
}

// runInstance works until its standard input ends.
func runInstance(namespace string, open func(string) (driver.Driver, error)) error {
	d, err := open(namespace)
	if err != nil {
		return err
	}
	b := tidings.New(d, &tidings.Options{Logger: slog.New(slog.DiscardHandler), Observers: []tidings.Observer{tellDead{}}})
	var options *tidings.SubscribeOptions
	if d.Features().History {
		options = &tidings.SubscribeOptions{StartAt: tidings.StartBeginning}
	}
	b.Module("killed").Subscribe("work", options, stepTaken.On(func(ctx context.Context, e tidings.Event[stepPayload]) error {
		writeLine(lineBegin, e.AggregateID(), e.Payload().Number)
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
		writeLine(lineEnd, e.AggregateID(), e.Payload().Number)
		return nil
	}))
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin) // its end is the word to stop
		cancel()
	}()
	return b.Run(ctx)
}

// instance is a process and what it said.
type instance struct {
	number  int
	command *exec.Cmd
	input   io.Closer
	read    chan struct{}
	died    time.Time
}

// happening is one line of one instance.
type happening struct {
	word      string
	instance  int
	aggregate string
	number    int
	at        int64
}

// statement is what all instances said.
type statement struct {
	mu         sync.Mutex
	happenings []happening
	handled    map[string]bool
	dead       int
}

func (s *statement) add(h happening) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if h.word == lineDead {
		s.dead++
		return
	}
	s.happenings = append(s.happenings, h)
	if h.word == lineEnd {
		s.handled[h.aggregate+"/"+strconv.Itoa(h.number)] = true
	}
}

func (s *statement) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.handled)
}

func (k *Killing) start(t testing.TB, number int, into *statement) *instance {
	t.Helper()
	i := &instance{number: number, read: make(chan struct{})}
	i.command = exec.Command(os.Args[0]) //nolint:noctx // its end is a part of the test
	i.command.Env = append(os.Environ(), variableInstance+"="+k.Namespace)
	i.command.Stderr = os.Stderr
	input, err := i.command.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	i.input = input
	output, err := i.command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := i.command.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(i.read)
		for scanner := bufio.NewScanner(output); scanner.Scan(); {
			words := strings.Fields(scanner.Text())
			if len(words) != 4 {
				continue // cut by the kill
			}
			step, err1 := strconv.Atoi(words[2])
			at, err2 := strconv.ParseInt(words[3], 10, 64)
			if err1 == nil && err2 == nil {
				into.add(happening{words[0], number, words[1], step, at})
			}
		}
	}()
	return i
}

func (i *instance) kill(t testing.TB) {
	t.Helper()
	if err := i.command.Process.Kill(); err != nil {
		t.Errorf("kill: %v", err)
	}
	<-i.read
	_ = i.command.Wait() // "signal: killed"
	i.died = time.Now()
}

func (i *instance) stop(t testing.TB) {
	t.Helper()
	_ = i.input.Close()
	<-i.read
	if err := i.command.Wait(); err != nil {
		t.Errorf("an instance: %v", err)
	}
}

// Run publishes, kills and waits until everything is handled, and judges what it
// saw: a lost event, a dead letter and, where Ordered, an event out of order fail
// the test.
func (k Killing) Run(t testing.TB) Killed {
	t.Helper()
	k.Events, k.Aggregates = cmp.Or(k.Events, 10_000), cmp.Or(k.Aggregates, 500)
	k.Instances, k.Kills, k.Patience = cmp.Or(k.Instances, 3), cmp.Or(k.Kills, 6), testtime.Scaled(cmp.Or(k.Patience, 5*time.Minute))
	began := time.Now()
	said := &statement{handled: make(map[string]bool)}
	running := make([]*instance, 0, k.Instances)
	next := 0
	start := func() *instance {
		next++
		return k.start(t, next, said)
	}
	for range k.Instances {
		running = append(running, start())
	}
	deaths := make(map[int]int64)
	defer func() {
		for _, i := range running {
			_ = i.command.Process.Kill() // those that did not end before
		}
	}()
	var publishing sync.WaitGroup
	publishing.Go(func() { k.publish(t) })
	result := Killed{Published: k.Events}
	for deadline := began.Add(k.Patience); said.count() < k.Events && time.Now().Before(deadline); {
		pauseFor(10 * time.Millisecond)
		if result.Kills < k.Kills && said.count() > (result.Kills+1)*k.Events/(k.Kills+2) {
			victim := rand.IntN(len(running))
			running[victim].kill(t)
			deaths[running[victim].number] = running[victim].died.UnixNano()
			running[victim] = start()
			result.Kills++
		}
	}
	publishing.Wait()
	for _, i := range running {
		i.stop(t)
	}
	running = nil
	result.Took = time.Since(began)
	result.judge(said, deaths)
	t.Logf("%d events of %d aggregates, %d instances, %d killed: %d lost, %d dead letters, %d out of order, %d handled again, %d overlapped, in %v",
		k.Events, k.Aggregates, k.Instances, result.Kills, result.Lost, result.Dead, result.Disordered, result.Duplicates, result.Overlaps, result.Took.Round(100*time.Millisecond))
	if result.Lost > 0 || result.Dead > 0 || result.Kills < k.Kills {
		t.Errorf("lost %d of %d, %d dead letters, %d of %d kills", result.Lost, result.Published, result.Dead, result.Kills, k.Kills)
	}
	if k.Ordered && result.Disordered > 0 {
		t.Errorf("%d events were started before an earlier one of their aggregate was finished", result.Disordered)
	}
	return result
}

func pauseFor(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	<-timer.C
}

func (k *Killing) publish(t testing.TB) {
	d, err := k.Open(k.Namespace)
	if err != nil {
		t.Errorf("the publisher: %v", err)
		return
	}
	b := tidings.New(d, &tidings.Options{Logger: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithTimeout(context.Background(), k.Patience)
	defer cancel()
	for at := 0; at < k.Events; at += 100 {
		var events []tidings.DomainEvent
		for n := at; n < min(at+100, k.Events); n++ {
			events = append(events, stepTaken.New("aggregate-"+strconv.Itoa(n%k.Aggregates), stepPayload{Number: n / k.Aggregates}))
		}
		if err := b.Publish(ctx, events...); err != nil {
			t.Errorf("publish: %v", err)
		}
	}
	if err := b.Close(ctx); err != nil {
		t.Errorf("the publisher: %v", err)
	}
}

// judge compares what happened with what was promised.
func (r *Killed) judge(said *statement, deaths map[int]int64) {
	r.Lost, r.Dead = r.Published-len(said.handled), said.dead
	byAggregate := make(map[string][]happening)
	for _, h := range said.happenings {
		byAggregate[h.aggregate] = append(byAggregate[h.aggregate], h)
	}
	for _, all := range byAggregate {
		slices.SortStableFunc(all, func(a, b happening) int { return cmp.Compare(a.at, b.at) })
		finished := make(map[int]bool)
		started := make(map[int]bool)
		running := make(map[int]int) // by instance: the number that it works on
		for _, h := range all {
			for other := range running {
				if died, dead := deaths[other]; dead && died <= h.at {
					delete(running, other)
				}
			}
			switch h.word {
			case lineBegin:
				if !started[h.number] && h.number > 0 && !finished[h.number-1] {
					r.Disordered++
				}
				started[h.number] = true
				if finished[h.number] {
					r.Duplicates++
				}
				delete(running, h.instance)
				if len(running) > 0 {
					r.Overlaps++
				}
				running[h.instance] = h.number
			case lineEnd:
				finished[h.number] = true
				delete(running, h.instance)
			}
		}
	}
}
