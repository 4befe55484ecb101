package faults

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
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
	// calm says that nothing is killed: no finished event may come again.
	calm bool
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
		{Name: "the only process stopped in good order", needs: oneProcess, run: stopOnly, calm: true},
		{Name: "consumer stopped beyond its session, then continued", Short: true, needs: sessions, run: freeze},
		{Name: "broker killed and restarted", needs: ownServer, run: restartServer},
		{Name: "broker gone for long", needs: ownServer, run: serverGone},
		{Name: "connections cut, again and again", needs: aLine, run: cutLines},
		{Name: "slow connections (20 ms each way)", needs: aLine, run: slowLines, calm: true},
		{Name: "settling fails for long", needs: severalProcesses, run: settleFails, calm: true},
		{Name: "claims store gone for long", needs: separate, run: databaseGone},
		{Name: "dead-letter store gone for long", needs: severalProcesses, run: deadLettersFail, dead: poisoned, calm: true},
		{Name: "rebalance while 16 lanes are busy", needs: severalProcesses, run: rebalance, calm: true},
		{Name: "rolling restart: 1, 3, 1 instances under load", Short: true, needs: severalProcesses, run: rolling, calm: true},
		{Name: "new contract version: consumers first", needs: sessions, run: consumersFirst, calm: true},
		{Name: "new contract version: publishers first", needs: sessions, run: publishersFirst, calm: true},
		{Name: "poison in mid-sequence", Short: true, run: poison, dead: poisoned, calm: true},
		{Name: "handler slower than the session", needs: sessions, run: slowHandlers, calm: true},
		{Name: "handler that ends its process", needs: counted, run: crash, dead: func(*Trial) int { return 1 }},
		{Name: "subscription added under load", needs: history, run: late},
		{Name: clockName, needs: aClock, run: jump},
		{Name: "disk full", needs: aDisk, run: diskFull},
		{Name: "overload: 10 times what handlers can", run: overload, calm: true},
		{Name: "payloads near the limit", run: large, calm: true},
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

func killBeforeSettle(t *Trial, size Size) {
	t.begin(1, Work{}, usual)
	for n := range size.Times {
		t.Start(Order{Role: Consumer, Point: AfterCommitBeforeSettle, Count: 1 + n*3}).Died(90 * time.Second)
		t.Hit()
	}
	t.flow(50)
}

func killConsumers(t *Trial, size Size) {
	consumers, _ := t.begin(2, Work{Takes: 20 * time.Millisecond}, usual)
	for n := range size.Times {
		t.flow(60)
		consumers[n%len(consumers)].Kill()
		t.Hit()
		consumers[n%len(consumers)] = t.Start(Order{Role: Consumer, Work: consumers[n%len(consumers)].Work})
	}
	t.flow(50)
}

func killPublishers(t *Trial, size Size) {
	_, publisher := t.begin(2, Work{}, usual)
	publisher.Stop()
	point := AfterPublish
	if t.transactions() {
		point = AfterCommit
	}
	for n := range size.Times {
		t.Start(Order{Role: Publisher, Load: usual, Lane: "a", Point: point, Count: 3 + n}).Died(60 * time.Second)
		t.Hit()
	}
	last := t.Start(Order{Role: Publisher, Load: usual, Lane: "a"})
	t.Until("the last publisher goes on", time.Minute, func() bool { return t.told(last, wordStored) >= 80 })
}

func killOnly(t *Trial, size Size) {
	p, _ := t.begin(1, Work{Takes: 20 * time.Millisecond}, usual)
	for range size.Times {
		t.flow(60)
		p[0].Kill()
		t.Hit()
		p[0] = t.Start(Order{Role: Both, Work: p[0].Work, Load: usual, Lane: "a"})
		t.Ready(p[0])
	}
	t.flow(50)
	t.note = "what waits in memory is lost with the process"
}

func stopOnly(t *Trial, size Size) {
	for range size.Times {
		p, _ := t.begin(1, Work{Takes: 5 * time.Millisecond}, usual)
		t.flow(60)
		p[0].Stop()
		t.Hit()
	}
}

func freeze(t *Trial, size Size) {
	consumers, _ := t.begin(2, Work{Takes: 10 * time.Millisecond}, usual)
	for n := range max(size.Times/2, 1) {
		t.flow(60)
		zombie := consumers[n%len(consumers)]
		zombie.Freeze()
		Pause(t.World.Session*2 + time.Second)
		zombie.Thaw()
		t.Hit()
	}
	t.flow(100)
}

func restartServer(t *Trial, size Size) {
	t.begin(2, Work{}, usual)
	server := t.World.Server(t)
	for range size.Times {
		t.flow(80)
		t.faultAll()
		server.Kill(t)
		t.Hit()
		server.Start(t)
	}
	t.flow(80)
}

func serverGone(t *Trial, size Size) {
	t.begin(2, Work{}, usual)
	server := t.World.Server(t)
	t.flow(80)
	t.faultAll()
	server.Kill(t)
	t.Hit()
	Pause(size.Gone)
	server.Start(t)
	t.flow(80)
	t.note = fmt.Sprintf("gone for %v", size.Gone)
}

// faultAll tells the ledger that a fault hits every process.
func (t *Trial) faultAll() {
	for _, p := range t.all() {
		if !p.Gone() {
			p.Fault()
		}
	}
}

// brokerLine puts a line between the processes that are started from now on and
// the broker.
func (t *Trial) brokerLine() *Line {
	t.Helper()
	if t.World.Database {
		l := NewLine(t, hostOf(t.Place.Database))
		t.Place.DatabaseLine = l.Address
		return l
	}
	l := NewLine(t, hostOf(t.Place.Broker))
	t.Place.BrokerLine = l.Address
	return l
}

// hostOf returns the host:port of an address.
func hostOf(address string) string {
	if _, rest, found := strings.Cut(address, "://"); found {
		address = rest
	}
	if _, rest, found := strings.Cut(address, "@"); found {
		address = rest
	}
	address, _, _ = strings.Cut(address, "/")
	address, _, _ = strings.Cut(address, ",")
	return address
}

func cutLines(t *Trial, size Size) {
	line := t.brokerLine()
	t.begin(2, Work{}, usual)
	for range size.Times {
		t.flow(80)
		t.faultAll()
		line.Cut()
		Pause(300 * time.Millisecond)
		line.Mend()
		t.Hit()
	}
	t.flow(80)
}

func slowLines(t *Trial, size Size) {
	line := t.brokerLine()
	line.Slow(20 * time.Millisecond)
	t.begin(2, Work{}, usual)
	t.Hit()
	t.flow(100 * size.Times)
	line.Slow(0)
}

func settleFails(t *Trial, size Size) {
	consumers, _ := t.begin(2, Work{}, usual)
	t.flow(60)
	for _, p := range consumers {
		p.Turn(SettleFails, true)
	}
	t.Hit()
	Pause(size.Gone)
	for _, p := range consumers {
		p.Turn(SettleFails, false)
	}
	t.flow(60)
	t.note = fmt.Sprintf("for %v", size.Gone)
}

func databaseGone(t *Trial, size Size) {
	line := NewLine(t, hostOf(t.Place.Database))
	t.Place.DatabaseLine = line.Address
	t.begin(2, Work{}, usual)
	t.flow(60)
	t.faultAll()
	line.Cut()
	t.Hit()
	Pause(size.Gone)
	line.Mend()
	t.flow(60)
	t.note = fmt.Sprintf("gone for %v", size.Gone)
}

const poisonEvery = 7

func poisoned(t *Trial) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := 0
	for _, s := range t.published {
		if s.Number%poisonEvery == poisonEvery-1 {
			n++
		}
	}
	return n
}

func deadLettersFail(t *Trial, size Size) {
	consumers, _ := t.begin(2, Work{PoisonEvery: poisonEvery}, Load{Aggregates: 12, Batch: 4, Pause: 50 * time.Millisecond, Events: 240})
	for _, p := range consumers {
		p.Turn(DeadLettersFail, true)
	}
	t.Hit()
	Pause(min(size.Gone, 10*time.Second))
	// Each of the 12 aggregates is held at its first poison.
	if n := t.Told(nil, wordDead); n > 0 {
		t.Errorf("%d dead letters while their store was gone", n)
	}
	for _, p := range consumers {
		p.Turn(DeadLettersFail, false)
	}
}

func poison(t *Trial, size Size) {
	t.begin(2, Work{PoisonEvery: poisonEvery}, Load{Aggregates: 12, Batch: 4, Pause: 10 * time.Millisecond, Events: 200 * size.Times})
	t.Hit()
	t.Wait(90*time.Second, func() bool { return t.finishedNow() >= 200*size.Times })
}

func rebalance(t *Trial, size Size) {
	work := Work{Takes: 30 * time.Millisecond}
	t.begin(1, work, Load{Aggregates: 64, Batch: 16, Pause: 20 * time.Millisecond})
	for range size.Times {
		t.flow(80)
		other := t.Start(Order{Role: Consumer, Work: work})
		t.Ready(other)
		t.flow(80)
		other.Stop()
		t.Hit()
	}
	t.flow(80)
}

func rolling(t *Trial, size Size) {
	work := Work{Takes: 5 * time.Millisecond}
	consumers, _ := t.begin(1, work, usual)
	for range 2 {
		consumers = append(consumers, t.Start(Order{Role: Consumer, Work: work}))
	}
	t.Ready(consumers...)
	for n := range size.Times * 2 {
		t.flow(40)
		next := t.Start(Order{Role: Consumer, Work: work})
		t.Ready(next)
		consumers[n%3].Stop()
		consumers[n%3] = next
		t.Hit()
	}
	consumers[1].Stop()
	consumers[2].Stop()
	t.flow(60)
	t.note = strconv.Itoa(size.Times*2) + " restarts"
}

func consumersFirst(t *Trial, _ Size) {
	old, publisher := t.begin(2, Work{}, usual)
	t.flow(60)
	var replaced []*Process
	for _, p := range old {
		next := t.Start(Order{Role: Consumer, Binary: 1})
		t.Ready(next)
		replaced = append(replaced, next)
		t.flow(30)
		p.Stop()
		t.Hit()
	}
	publisher.Stop()
	t.Start(Order{Role: Publisher, Load: usual, Lane: "a", Binary: 1})
	t.flow(100)
	_ = replaced
}

func publishersFirst(t *Trial, _ Size) {
	old, publisher := t.begin(2, Work{}, usual)
	t.flow(60)
	publisher.Stop()
	published := t.Published()
	next := t.Start(Order{Role: Publisher, Load: usual, Lane: "a", Binary: 1})
	t.Until("the new version is published", time.Minute, func() bool { return t.told(next, wordStored) >= 60 })
	next.Stop()
	t.Wait(20*time.Second, func() bool { return t.finishedNow() >= published }) // the old ones hold the rest
	for _, p := range old {
		t.Start(Order{Role: Consumer, Binary: 1})
		p.Stop()
		t.Hit()
	}
}

func slowHandlers(t *Trial, size Size) {
	t.begin(2, Work{SlowEvery: 5, SlowFor: t.World.Session*2 + time.Second}, Load{Aggregates: 12, Batch: 6, Pause: 20 * time.Millisecond, Events: 60 * min(size.Times, 2)})
	t.Hit()
	t.Wait(90*time.Second, func() bool { return t.finishedNow() >= 60*min(size.Times, 2) })
}

func crash(t *Trial, _ Size) {
	// A few aggregates: what else was running when the process ended is started
	// again too, and is not to blame.
	work := Work{CrashAggregate: "a-3", CrashNumber: 4, Takes: 2 * time.Millisecond}
	order := Order{Role: Consumer, Work: work, MaxCrashes: 3}
	consumers := []*Process{t.Start(order), t.Start(order)}
	t.Ready(consumers...)
	publisher := t.Start(Order{Role: Publisher, Load: Load{Aggregates: 6, Batch: 3, Pause: 30 * time.Millisecond}, Lane: "a"})
	crashes := 0
	t.Until("the event is a dead letter", 90*time.Second, func() bool {
		for n, p := range consumers {
			if p.Gone() {
				p.Fault()
				crashes++
				t.Hit()
				consumers[n] = t.Start(order)
			}
		}
		return t.counts[wordDead] > 0
	})
	publisher.Stop()
	t.note = fmt.Sprintf("the process ended %d times", crashes)
}

// late adds a second subscription, which gets everything from the beginning.
func late(t *Trial, size Size) {
	t.begin(2, Work{}, usual)
	t.flow(100)
	t.mu.Lock()
	t.late = true
	for _, s := range slices.Collect(maps.Values(t.published)) {
		t.publish(s)
	}
	t.mu.Unlock()
	for range 2 {
		t.Ready(t.Start(Order{Role: Consumer, Late: true}))
		t.Hit()
	}
	t.flow(60 * size.Times)
}

func jump(t *Trial, _ Size) {
	server := t.World.Server(t)
	t.begin(2, Work{Takes: 5 * time.Millisecond}, usual)
	defer server.Jump(t, 0)
	for _, by := range []time.Duration{time.Hour, 0, -time.Hour, 0} {
		t.flow(80)
		t.faultAll()
		server.Jump(t, by)
		t.Hit()
	}
	t.flow(80)
}

func diskFull(t *Trial, size Size) {
	place, fill, clear := t.World.Disk(t)
	t.Place = place
	t.begin(2, Work{}, usual)
	for range size.Times {
		t.flow(60)
		t.faultAll()
		fill()
		Pause(2 * time.Second)
		clear()
		t.Hit()
	}
	t.flow(60)
}

func overload(t *Trial, size Size) {
	events := 1500 * min(size.Times, 4)
	if t.World.OneProcess || t.World.Serial {
		events = 1500 // a publisher may have to wait for its handlers
	}
	consumers, _ := t.begin(1, Work{Takes: 20 * time.Millisecond}, Load{Aggregates: 200, Batch: 100, Events: events})
	t.Hit()
	t.Wait(150*time.Second, func() bool { return t.finishedNow() >= events })
	t.note = "most memory of a consumer " + memoryOf(consumers[0])
}

// memoryOf returns the largest resident size that a process has had, where the
// system tells.
func memoryOf(p *Process) string {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.command.Process.Pid))
	if err != nil {
		return "unknown"
	}
	for line := range strings.Lines(string(status)) {
		if rest, found := strings.CutPrefix(line, "VmHWM:"); found {
			kilobytes, err := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(rest), " kB"))
			if err == nil {
				return fmt.Sprintf("%d MiB", kilobytes>>10)
			}
		}
	}
	return "unknown"
}

func large(t *Trial, size Size) {
	bytes := t.World.Largest
	if bytes == 0 {
		bytes = 900_000
	}
	events := 6 * size.Times
	t.begin(2, Work{}, Load{Aggregates: 4, Batch: 2, Pause: 20 * time.Millisecond, Events: events, Bytes: bytes})
	t.Hit()
	t.Wait(90*time.Second, func() bool { return t.finishedNow() >= events })
	t.note = fmt.Sprintf("%d bytes each", bytes)
}

// transactions reports whether publishers of this world commit.
func (t *Trial) transactions() bool {
	t.Helper()
	parts, err := t.World.Enter(t.Context(), t.Place, &Trap{})
	if err != nil {
		t.Fatal(err)
	}
	_ = parts.Driver.Close(context.WithoutCancel(t.Context()))
	if parts.Close != nil {
		parts.Close()
	}
	return parts.Committed != nil
}
