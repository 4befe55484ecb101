package faults

import (
	"fmt"
	"testing"
	"time"
)

// Fault is what goes wrong in one row of the table.
type Fault struct {
	// Name is the row's, and World.Not's.
	Name string
	// Short says that the fault is part of the short form.
	Short bool
	// needs returns why the fault cannot be made in a world, or "".
	needs func(w *World) string
	// run makes it happen and leaves the trial to be drained.
	run func(t *Trial, size Size)
	// dead is how many dead letters there must be: nil means none.
	dead func(t *Trial) int
}

// Size is how long a fault lasts.
type Size struct {
	Times int           // kills, cuts, restarts
	Gone  time.Duration // what is away for long is away so long
}

// The sizes of the two forms.
var (
	Long  = Size{Times: 5, Gone: 30 * time.Second}
	Short = Size{Times: 2, Gone: 4 * time.Second}
)

// All are the faults, in the order of the table.
func All() []Fault {
	return []Fault{
		{Name: "consumer killed between effect and settle", Short: true, needs: severalProcesses, run: killBeforeSettle},
		{Name: "consumer killed in mid-batch", needs: severalProcesses, run: killConsumers},
		{Name: "publisher killed right after nil", needs: severalProcesses, run: killPublishers},
		{Name: "the only process killed", Short: true, needs: oneProcess, run: killOnly},
		{Name: "the only process stopped in good order", needs: oneProcess, run: stopOnly},
		{Name: "consumer stopped beyond its session, then continued", Short: true, needs: sessions, run: freeze},
		{Name: "broker killed and restarted", needs: ownServer, run: restartServer},
		{Name: "broker gone for long", needs: ownServer, run: serverGone},
		{Name: "connections cut, again and again", needs: aLine, run: cutLines},
		{Name: "slow connections (20 ms each way)", needs: aLine, run: slowLines},
		{Name: "settling fails for long", needs: severalProcesses, run: settleFails},
		{Name: "claims store gone for long", needs: separate, run: databaseGone},
		{Name: "dead-letter store gone for long", needs: severalProcesses, run: deadLettersFail, dead: poisoned},
		{Name: "rebalance while 16 lanes are busy", needs: severalProcesses, run: rebalance},
		{Name: "rolling restart: 1, 3, 1 instances under load", Short: true, needs: severalProcesses, run: rolling},
		{Name: "new contract version: consumers first", needs: sessions, run: consumersFirst},
		{Name: "new contract version: publishers first", needs: sessions, run: publishersFirst},
		{Name: "poison in mid-sequence", Short: true, run: poison, dead: poisoned},
		{Name: "handler slower than the session", needs: sessions, run: slowHandlers},
		{Name: "handler that ends its process", needs: counted, run: crash, dead: func(*Trial) int { return 1 }},
		{Name: "subscription added under load", needs: history, run: late},
		{Name: clockName, needs: aClock, run: jump},
		{Name: "disk full", needs: aDisk, run: diskFull},
		{Name: "overload: 10 times what handlers can", run: overload},
		{Name: "payloads near the limit", run: large},
	}
}

const clockName = "the store's clock jumps by an hour, and back"

func severalProcesses(w *World) string {
	if w.OneProcess {
		return "publishers and handlers are one process here"
	}
	return ""
}

func oneProcess(w *World) string {
	if w.OneProcess {
		return ""
	}
	return notARow // the rows of several processes say more
}

// notARow leaves a row out.
const notARow = "-"

func sessions(w *World) string {
	if w.Session == 0 {
		return "there is no session and no lease"
	}
	return ""
}

func ownServer(w *World) string {
	if w.Server == nil {
		return w.NoServer
	}
	return ""
}

func aLine(w *World) string {
	if w.OneProcess || w.Prepare == nil {
		return "there is no connection"
	}
	if w.Not["lines"] != "" {
		return w.Not["lines"]
	}
	return ""
}

func separate(w *World) string {
	if w.Separate {
		return ""
	}
	if w.Database {
		return "the claims are in the bus's own database: see the broker's rows"
	}
	return "there is no claims store beside the process"
}

func history(w *World) string {
	if w.OneProcess || w.AtMostOnce {
		return "there is no history to begin with"
	}
	return ""
}

func aDisk(w *World) string {
	if w.Disk == nil {
		return "no small disk was made for it"
	}
	return ""
}

func aClock(w *World) string {
	if w.Server == nil {
		return "the clock of this store is not ours to move"
	}
	return w.Not["clock"]
}

func counted(w *World) string {
	if !w.Separate && !w.Database {
		return "starts are counted in a claims store, and there is none"
	}
	return ""
}

var usual = Load{Aggregates: 24, Batch: 8, Pause: 20 * time.Millisecond}

// Run goes through the faults of one world, one after the other, and gives each
// verdict, or the reason why there is none, to report.
func Run(t *testing.T, ledger *Ledger, world World, short bool, report func(Verdict)) {
	t.Helper()
	for _, f := range All() {
		if short && !f.Short {
			continue
		}
		why := world.Not[f.Name]
		if why == "" && f.needs != nil {
			why = f.needs(&world)
		}
		aboutBroker := f.Name == "broker killed and restarted" || f.Name == "broker gone for long"
		if why == notARow || world.BrokerOnly && !aboutBroker || world.ClockOnly && f.Name != clockName {
			continue
		}
		if why != "" {
			report(Verdict{Driver: world.Name, Fault: f.Name, NotProven: why})
			continue
		}
		t.Run(f.Name, func(t *testing.T) {
			size := Long
			if short {
				size = Short
			}
			trial := NewTrial(t, ledger, world, f.Name)
			f.run(trial, size)
			trial.stopPublishing()
			if world.AtMostOnce || world.Weaker || world.OneProcess && f.Name == "the only process killed" {
				trial.DrainQuiet(3 * time.Second)
			} else {
				trial.Drain(90 * time.Second)
			}
			v := trial.Judge()
			v.Note = trial.note
			report(v)
			f.judge(t, trial, v)
		})
	}
}

// judge fails the test for what the world has promised and not kept.
func (f *Fault) judge(t *testing.T, trial *Trial, v Verdict) {
	t.Helper()
	w := trial.World
	if w.Weaker {
		return
	}
	if v.Published == 0 {
		t.Errorf("nothing was published: this shows nothing")
	}
	if v.Lost > 0 && !w.AtMostOnce && !w.OneProcess || v.DoubleEffects > 0 || v.Phantoms > 0 {
		t.Errorf("%s, %s: %v", w.Name, f.Name, v)
	}
	if v.Disordered > 0 && !w.AtMostOnce {
		t.Errorf("order is broken: %v", v)
	}
	if v.Duplicates > v.Bound && !w.AtMostOnce {
		t.Errorf("%d duplicates, at most %d were in hand", v.Duplicates, v.Bound)
	}
	want := 0
	if f.dead != nil {
		want = f.dead(trial)
	}
	if v.Dead != want && !w.AtMostOnce {
		t.Errorf("%d dead letters, want %d", v.Dead, want)
	}
}

// begin starts consumers, waits for them, and starts a publisher.
func (t *Trial) begin(consumers int, work Work, load Load) (all []*Process, publisher *Process) {
	t.Helper()
	if t.World.OneProcess {
		p := t.Start(Order{Role: Both, Work: work, Load: load, Lane: "a"})
		t.Ready(p)
		return []*Process{p}, p
	}
	if t.World.AtMostOnce {
		consumers = 1 // each would handle everything
	}
	for range consumers {
		all = append(all, t.Start(Order{Role: Consumer, Work: work}))
	}
	t.Ready(all...)
	return all, t.Start(Order{Role: Publisher, Load: load, Lane: "a"})
}

// flow waits until so many more events are finished.
func (t *Trial) flow(events int) {
	t.Helper()
	want := t.Finished() + events
	t.Until(fmt.Sprintf("%d events more are finished", events), 90*time.Second, func() bool { return t.finishedNow() >= want })
}

func (t *Trial) finishedNow() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.finished)
}

func (t *Trial) stopPublishing() {
	for _, p := range t.all() {
		switch {
		case p.Gone():
		case p.Role == Publisher && p.Load.Events == 0:
			p.Stop()
		case p.Role == Both:
			p.Turn(PublishingStops, true)
		}
	}
	for _, p := range t.all() {
		if p.Role == Publisher && !p.Gone() { // it ends when it has published all
			t.Wait(90*time.Second, p.Gone)
		}
	}
}

// DrainQuiet waits until nothing has been finished for a while: for what may be
// lost.
func (t *Trial) DrainQuiet(quiet time.Duration) {
	t.Helper()
	last, since := t.Finished(), time.Now()
	for time.Since(since) < quiet {
		Pause(100 * time.Millisecond)
		if now := t.Finished(); now != last {
			last, since = now, time.Now()
		}
	}
}
