package faults

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/outbox"
)

// Roles of processes.
const (
	Publisher = "publisher"
	Consumer  = "consumer"
	Relay     = "relay"
	Both      = "publisher and consumer" // in one process
	Instance  = "instance"               // a consumer and, where there is an outbox, a relay; it tells its health
)

// Order is what a process is told.
type Order struct {
	Role  string
	World string
	Place Place
	// Lane begins the names of a publisher's aggregates: one publisher at a time
	// has them, and the next with the same Lane goes on where it was.
	Lane  string
	Load  Load
	Work  Work
	Point Point
	Count int
	// Binary is which of two versions of an application this is: 0, or 1 with a
	// newer version of the contract.
	Binary int
	// Late makes a consumer one of a second subscription, whose events have
	// LateSubscription before their ids in the ledger.
	Late bool
	// MaxCrashes replaces the subscription's.
	MaxCrashes int
	// Halt makes the process stand still for good at Point, instead of ending there.
	Halt bool
	// Timeout, Drain and Patience replace the handlers' timeout, the bus's drain
	// timeout, and how long a publisher waits for an answer.
	Timeout, Drain, Patience time.Duration

	Folder  string
	Process string
}

// LateSubscription begins the ids of what the second subscription handles.
const LateSubscription = "late:"

func (o *Order) mark() string {
	if o.Late {
		return LateSubscription
	}
	return ""
}

const variableOrder = "TIDINGS_FAULTS_ORDER"

// Main is called first by the TestMain of a package that uses the suite: in a
// process of the suite it does what it was ordered and does not return.
func Main(worlds ...World) {
	text, found := os.LookupEnv(variableOrder)
	if !found {
		return
	}
	var order Order
	err := json.Unmarshal([]byte(text), &order)
	if err == nil {
		err = obey(order, worlds)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, order.Process+":", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// obey works until the standard input ends, which is the word to stop.
func obey(order Order, worlds []World) error {
	n := slices.IndexFunc(worlds, func(w World) bool { return w.Name == order.World })
	if n < 0 {
		return fmt.Errorf("faults: there is no world %q here", order.World)
	}
	j, err := openJournal(journalPath(order.Folder, order.Process))
	if err != nil {
		return err
	}
	j.write(entry{word: wordBegun})
	ctx, cancel := signal.NotifyContext(context.Background(), signalEnd)
	defer cancel()
	switches := &switches{}
	go func() {
		switches.follow(os.Stdin)
		cancel()
	}()
	trap := &Trap{Point: order.Point, Count: order.Count}
	if order.Halt {
		trap.halt = func() {
			j.write(entry{word: wordHalted})
			select {} // until somebody kills it
		}
	}
	parts, err := worlds[n].Enter(ctx, order.Place, trap)
	if err != nil {
		return err
	}
	p := &process{Order: order, journal: j, trap: trap, parts: parts, switches: switches}
	switch order.Role {
	case Publisher:
		err = p.publish(ctx)
	case Consumer:
		err = p.consume(ctx)
	case Both:
		err = p.both(ctx)
	case Relay:
		err = p.relay(ctx)
	case Instance:
		err = p.instance(ctx)
	default:
		err = fmt.Errorf("faults: role %q", order.Role)
	}
	if parts.Close != nil {
		parts.Close()
	}
	return err
}

// process is one that the suite has started, from inside.
type process struct {
	Order
	journal *journal
	trap    *Trap
	parts   *Parts
	*switches
}

// switches are what the trial turns on and off in a running process, by lines on
// its standard input.
type switches struct {
	settleFails     atomic.Bool
	deadLettersFail atomic.Bool
	publishingStops atomic.Bool
	publishingWaits atomic.Bool
}

// Lines that a process understands.
const (
	SettleFails     = "settle fails"
	DeadLettersFail = "dead letters fail"
	PublishingStops = "publishing stops"
	PublishingWaits = "publishing waits"
	works           = " no more"
)

func (s *switches) follow(input io.Reader) {
	for lines := bufio.NewScanner(input); lines.Scan(); {
		what, off := strings.CutSuffix(lines.Text(), works)
		switch what {
		case SettleFails:
			s.settleFails.Store(!off)
		case DeadLettersFail:
			s.deadLettersFail.Store(!off)
		case PublishingStops:
			s.publishingStops.Store(!off)
		case PublishingWaits:
			s.publishingWaits.Store(!off)
		}
	}
}

// Turn turns something on in the process, or off.
func (p *Process) Turn(what string, on bool) {
	p.trial.Helper()
	if !on {
		what += works
	}
	if _, err := io.WriteString(p.input, what+"\n"); err != nil && !p.Gone() {
		p.trial.Errorf("%s: %v", p.Process, err)
	}
}

var errSwitched = errors.New("faults: this fails now")

func (p *process) bus(d driver.Driver, observers ...tidings.Observer) *tidings.Bus {
	options := p.parts.Options
	options.Logger = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))
	options.Observers = observers
	options.DrainTimeout = cmp.Or(p.Drain, options.DrainTimeout)
	return tidings.New(d, &options)
}

// relay sends what the outbox holds.
func (p *process) relay(ctx context.Context) error {
	b := p.bus(p.parts.Driver)
	if err := p.addRelay(b); err != nil {
		return err
	}
	p.journal.write(entry{word: wordReady})
	return b.Run(ctx)
}

// addRelay gives a bus the relay of the outbox.
func (p *process) addRelay(b *tidings.Bus) error {
	forward := func(ctx context.Context, messages []driver.Message) error {
		sending := make([]entry, len(messages))
		for n, m := range messages {
			sending[n] = entry{word: wordSent, id: m.ID, place: Step{Aggregate: m.Key}}
		}
		p.journal.write(sending...)
		return b.Forward(ctx, messages)
	}
	options := p.parts.Relay
	options.Logger = slog.New(slog.DiscardHandler)
	r, err := outbox.NewRelay(&markedQueue{p.parts.Queue, p.journal, p.Process}, forward, &options)
	if err != nil {
		return err
	}
	return b.Add(r)
}

type markedQueue struct {
	outbox.Queue
	journal *journal
	process string
}

func (q *markedQueue) Sent(ctx context.Context, group, holder string, leases []driver.Lease, rows []outbox.Row) (int, error) {
	n, err := q.Queue.Sent(ctx, group, holder, leases, rows)
	if err != nil || n < len(rows) {
		// The slot went to another relay meanwhile, or nobody knows: they may be sent
		// again.
		q.journal.write(entry{word: wordFault, id: q.process})
		return n, err
	}
	marked := make([]entry, len(rows))
	for at, r := range rows {
		marked[at] = entry{word: wordMarked, id: r.ID}
	}
	q.journal.write(marked...)
	return n, nil
}

// Process is one that the suite has started, from outside.
type Process struct {
	Order
	trial   *Trial
	command *exec.Cmd
	input   io.WriteCloser
	output  *bytes.Buffer
	ended   chan struct{}
	once    sync.Once
	frozen  time.Time
}

// Start starts a process of the trial. What the order leaves open is the trial's.
func (t *Trial) Start(order Order) *Process {
	t.Helper()
	t.mu.Lock()
	t.started++
	order.Process = order.Role + "-" + strconv.Itoa(t.started)
	t.mu.Unlock()
	order.World, order.Folder = t.World.Name, t.folder
	if order.Place == (Place{}) {
		order.Place = t.Place
	}
	text, err := json.Marshal(order)
	if err != nil {
		t.Fatal(err)
	}
	p := &Process{Order: order, trial: t, command: exec.Command(cmp.Or(t.World.Program, os.Args[0])), output: &bytes.Buffer{}, ended: make(chan struct{})} //nolint:noctx,gosec // its end is a part of the test; it is this binary
	p.command.Env = append(os.Environ(), variableOrder+"="+string(text))
	p.command.Stdout, p.command.Stderr = p.output, p.output
	if p.input, err = p.command.StdinPipe(); err == nil {
		err = p.command.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.follow(order.Process)
	t.mu.Lock()
	t.processes = append(t.processes, p)
	t.mu.Unlock()
	go func() {
		_ = p.command.Wait() // its state says how it ended
		t.journal.write(entry{word: wordDied, id: order.Process})
		close(p.ended)
	}()
	return p
}

// Kill ends the process as kill -9 does, and waits.
func (p *Process) Kill() {
	p.trial.Helper()
	p.Fault()
	if err := p.command.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		p.trial.Errorf("kill %s: %v", p.Process, err)
	}
	<-p.ended
}

// Freeze stops the process as SIGSTOP does: it is there, and does nothing.
func (p *Process) Freeze() {
	p.trial.Helper()
	p.Fault()
	p.frozen = time.Now()
	if err := p.command.Process.Signal(signalStop); err != nil {
		p.trial.Errorf("stop %s: %v", p.Process, err)
	}
}

// Thaw lets it go on as if nothing had been. Until it has learned that its share
// went to others, for which it gets a session, what it settles is worth nothing.
func (p *Process) Thaw() {
	p.trial.Helper()
	learned := time.Now().Add(p.trial.World.Session)
	p.trial.journal.write(entry{word: wordFault, id: p.Process, count: int(learned.Sub(p.frozen)), at: learned.UnixNano()})
	if err := p.command.Process.Signal(signalContinue); err != nil {
		p.trial.Errorf("continue %s: %v", p.Process, err)
	}
}

// Fault tells the ledger that a fault hits the process now: what it has in hand
// may come again.
func (p *Process) Fault() { p.trial.journal.write(entry{word: wordFault, id: p.Process}) }

// Died waits until the process has ended by its trap.
func (p *Process) Died(within time.Duration) {
	p.trial.Helper()
	timer := time.NewTimer(within)
	defer timer.Stop()
	select {
	case <-p.ended:
	case <-timer.C:
		p.trial.Fatalf("%s has not come to %q %d times within %v\n%s", p.Process, p.Point, p.Count, within, p.Output())
	}
	if p.command.ProcessState.ExitCode() != -1 {
		p.trial.Fatalf("%s was not killed: %v\n%s", p.Process, p.command.ProcessState, p.Output())
	}
	p.Fault()
}

// Gone reports whether the process has ended.
func (p *Process) Gone() bool {
	select {
	case <-p.ended:
		return true
	default:
		return false
	}
}

// Stop tells the process to end in good order, and waits.
func (p *Process) Stop() {
	p.trial.Helper()
	p.once.Do(func() { _ = p.input.Close() })
	timer := time.NewTimer(stopTime)
	defer timer.Stop()
	select {
	case <-p.ended:
	case <-timer.C:
		p.trial.Errorf("%s has not stopped within %v\n%s", p.Process, stopTime, p.Output())
		_ = p.command.Process.Kill()
		<-p.ended
	}
	if code := p.command.ProcessState.ExitCode(); code != 0 {
		p.trial.Errorf("%s ended with %v\n%s", p.Process, p.command.ProcessState, p.Output())
	}
}

// stopTime is how long a process may take to stop: longer than a bus drains.
const stopTime = 40 * time.Second

// Output is what the process wrote to standard output and error, once it has
// ended.
func (p *Process) Output() string {
	select {
	case <-p.ended:
		text := p.output.String()
		return text[max(0, len(text)-4000):]
	default:
		return "(it still runs)"
	}
}

// Ready waits until consumers have joined.
func (t *Trial) Ready(processes ...*Process) {
	t.Helper()
	for _, p := range processes {
		t.Until("a "+p.Role+" is ready", readyTime, func() bool {
			if p.Gone() {
				t.Fatalf("%s has ended\n%s", p.Process, p.Output())
			}
			t.mu.Lock()
			defer t.mu.Unlock()
			return t.counts[p.Process+"/"+wordReady] > 0
		})
	}
}

const readyTime = 60 * time.Second

// Until waits for a condition.
func (t *Trial) Until(what string, within time.Duration, met func() bool) {
	t.Helper()
	if !t.Wait(within, met) {
		t.Fatalf("not within %v: %s; %s", within, what, t.State())
	}
}

// Wait waits for a condition and reports whether it came.
func (t *Trial) Wait(within time.Duration, met func() bool) bool {
	t.Helper()
	for deadline := time.Now().Add(within); ; Pause(20 * time.Millisecond) {
		t.read()
		t.throttle()
		if met() {
			return true
		}
		if time.Now().After(deadline) {
			return false
		}
	}
}

// Pause waits. It is for the length of a fault; what a test waits for is a
// condition.
func Pause(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	<-timer.C
}

// StopAll stops every process of a role in good order.
func (t *Trial) StopAll(role string) {
	t.Helper()
	for _, p := range t.all() {
		if p.Role == role && !p.Gone() {
			p.Stop()
		}
	}
}
