package faults

import (
	"fmt"
	"testing"
	"time"

	"github.com/tidings-go/tidings/internal/line"
)

// When a server falls silent.
const (
	Starting = "start"    // while an instance starts
	Working  = "work"     // while all work
	Stopping = "shutdown" // right before the word to end
	Killed   = "kill -9"  // right before the instance is killed, in the middle of a transaction
)

// Silence is one way in which a server of a world falls silent: connections stay
// open and pass nothing, and neither side is told of the end of the other.
type Silence struct {
	// During is when: one of the constants.
	During string
	// All says that it is silent for all instances and for publishers. Otherwise
	// for one instance of two.
	All bool
	// Dead says that new connections get nothing either, until it is over.
	// Otherwise those that are open stay silent for good, and new ones work.
	Dead bool
	// Direction is which way nothing passes.
	Direction line.Direction
	// Role and Point are those of the process that is killed.
	Role  string
	Point Point
}

// String names the silence, for a test.
func (s Silence) String() string {
	if s.During == Killed {
		return fmt.Sprintf("%s, %s %s", s.During, s.Role, s.Point)
	}
	return fmt.Sprintf("%s, %s, %s, %s", s.During, s.who(), s.connections(), s.Direction)
}

func (s Silence) who() string {
	if s.All {
		return "all"
	}
	return "one of two"
}

func (s Silence) connections() string {
	if s.Dead {
		return "new ones too"
	}
	return "open ones"
}

// Silences are all there are while instances start, work and stop.
func Silences() (all []Silence) {
	for _, during := range []string{Starting, Working, Stopping} {
		for _, everyone := range []bool{false, true} {
			for _, dead := range []bool{false, true} {
				for _, direction := range []line.Direction{line.ToServer, line.FromServer, line.Both} {
					all = append(all, Silence{During: during, All: everyone, Dead: dead, Direction: direction})
				}
			}
		}
	}
	return all
}

// Silent is a world with the server that falls silent in it.
type Silent struct {
	World
	// Server is its name for the table; Database says that it is the one at
	// Place.Database, and not the broker.
	Server   string
	Database bool
	// Slack is what a machine with other work adds to every limit, at least.
	Slack time.Duration
}

// The times of the promise, beside the world's Session.
const (
	// SilenceMargin is how much longer than a lease anything stands still.
	SilenceMargin = 10 * time.Second
	// DrainTime is every bus's drain timeout, and EndMargin how much longer its
	// process may take to end.
	DrainTime = 3 * time.Second
	EndMargin = 5 * time.Second
	// HandlerTime bounds an attempt of a handler, and a call of a publisher.
	HandlerTime = 3 * time.Second
)

// silent is one trial of a silence.
type silent struct {
	*Trial
	Silence
	world   *Silent
	work    Work
	verdict SilenceVerdict
	lines   map[*Process]*line.Line
	slack   time.Duration
}

// RunSilence puts a world through one silence.
func RunSilence(t *testing.T, ledger *Ledger, world *Silent, silence Silence) SilenceVerdict {
	t.Helper()
	s := &silent{Trial: NewTrial(t, ledger, world.World, silence.String()), Silence: silence, world: world, slack: world.Slack, lines: make(map[*Process]*line.Line),
		verdict: SilenceVerdict{Silence: silence, Server: world.Server}}
	switch silence.During {
	case Starting:
		s.starting()
	case Working:
		s.working()
	case Stopping:
		s.stopping()
	case Killed:
		s.killed()
	}
	s.stopPublishing()
	switch {
	case world.AtMostOnce:
		s.DrainQuiet(3 * time.Second)
	case t.Failed(): // what is missing is counted, and the reason is told
		s.Drain(5 * time.Second)
	default:
		s.Drain(60 * time.Second)
	}
	s.verdict.Verdict = s.Judge()
	f := Fault{Name: silence.String()}
	f.judge(t, s.Trial, s.verdict.Verdict)
	if world.AtMostOnce { // what is lost is no failure here, and not worth reading as one
		s.verdict.Note = "at most once"
	}
	return s.verdict
}

// limit is how long anything may stand still, and what a busy machine adds.
func (s *silent) limit() time.Duration { return s.world.Session + SilenceMargin + s.slack }

// endLimit is how long a process may take to end.
func (s *silent) endLimit() time.Duration { return DrainTime + EndMargin + s.slack }

// calibrate measures how busy the machine is: a new process of this trial took so
// long to say its first word, which takes a tenth of a second where nothing else is
// to do.
func (s *silent) calibrate(p *Process, started time.Time) {
	s.Until(p.Process+" begins", readyTime, func() bool { return s.told(p, wordBegun) > 0 })
	at, _ := s.first(p, wordBegun, started)
	s.slack = max(s.slack, 5*at.Sub(started))
}

// failf says in the test and in the table what does not hold.
func (s *silent) failf(format string, args ...any) {
	s.Helper()
	s.Errorf(format, args...)
	s.verdict.Broken = append(s.verdict.Broken, fmt.Sprintf(format, args...))
}

// begin starts a process behind a line of its own.
func (s *silent) begin(role string, change func(*Order)) *Process {
	s.Helper()
	return s.behind(s.newLine(), role, change)
}

func (s *silent) newLine() *line.Line {
	s.Helper()
	if s.world.Database {
		return s.line(hostOf(s.Place.Database))
	}
	return s.line(hostOf(s.Place.Broker))
}

func (s *silent) behind(l *line.Line, role string, change func(*Order)) *Process {
	s.Helper()
	order := Order{Role: role, Place: s.Place, Work: s.work, Timeout: HandlerTime, Drain: DrainTime, Patience: HandlerTime}
	if role == Publisher {
		order.Load, order.Lane = quiet, "a"
	}
	if s.world.Database {
		order.Place.DatabaseLine = l.Address
	} else {
		order.Place.BrokerLine = l.Address
	}
	if change != nil {
		change(&order)
	}
	p := s.Start(order)
	s.lines[p] = l
	return p
}

// quiet is what publishers do: a silence is waited for, and the machine has many.
var quiet = Load{Aggregates: 8, Batch: 2, Pause: 200 * time.Millisecond}

// instances starts two, or one where each would handle everything, and a publisher.
func (s *silent) instances() (all []*Process, publisher *Process) {
	s.Helper()
	started := time.Now()
	all = []*Process{s.begin(Instance, nil)}
	s.calibrate(all[0], started)
	if !s.world.AtMostOnce {
		all = append(all, s.begin(Instance, nil))
	}
	s.Ready(all...)
	publisher = s.begin(Publisher, nil)
	began := time.Now()
	if !s.Wait(readyTime, func() bool { _, flows := s.flows(began); return flows }) {
		s.dump(all...)
		s.Fatalf("nothing is silent yet, and not all aggregates flow: %s", s.State())
	}
	return all, publisher
}

// hit is whom the silence is about.
func (s *silent) hit(instances []*Process, publisher *Process) []*Process {
	if s.All {
		return append(instances[:len(instances):len(instances)], publisher)
	}
	return instances[:1]
}

// hush makes the lines of processes silent.
func (s *silent) hush(processes ...*Process) (since time.Time) {
	since = time.Now()
	for _, p := range processes {
		p.Fault()
		if s.Dead {
			s.lines[p].Silence(s.Direction)
		} else {
			s.lines[p].SilenceOpen(s.Direction)
		}
	}
	s.Hit()
	return since
}

// restore ends the silence.
func (s *silent) restore(processes ...*Process) time.Time {
	for _, p := range processes {
		s.lines[p].Restore()
	}
	return time.Now()
}

// learned tells the ledger until when processes may not have known what they had
// lost: what they received meanwhile may come again.
func (s *silent) learned(since time.Time, processes ...*Process) {
	at := time.Now().Add(s.world.Session)
	for _, p := range processes {
		s.journal.write(entry{word: wordFault, id: p.Process, count: int(at.Sub(since)), at: at.UnixNano()})
	}
}

func (s *silent) working() {
	instances, publisher := s.instances()
	hit := s.hit(instances, publisher)
	since := s.hush(hit...)
	from := since
	switch {
	case s.Dead && (s.All || len(instances) == 1):
		s.unready(since, instances...)
		from = s.restore(hit...)
		s.recovers(from)
	case s.Dead:
		s.recovers(since)
		s.unready(since, instances[0])
		from = s.restore(hit...)
	default:
		s.recovers(since)
	}
	s.readyAgain(from, instances...)
	s.learned(since, hit...)
	s.alone(instances)
}

// alone ends the sound instance: the one that was silent says that it is ready, and
// has to be.
func (s *silent) alone(instances []*Process) {
	if s.All || len(instances) < 2 || s.Failed() {
		return
	}
	s.ends(instances[1])
	since := time.Now()
	if !s.Wait(2*s.limit(), func() bool { _, flows := s.flows(since); return flows }) {
		s.failf("the instance that was silent says that it is ready, and nothing is handled after the other's end in %v; %s", 2*s.limit(), s.State())
		s.dump(instances[0])
	}
}

func (s *silent) starting() {
	sound, _ := s.instances()
	if s.All || s.world.AtMostOnce {
		s.ends(sound...)
		sound = nil
	} else {
		s.ends(sound[0])
		sound = sound[1:]
	}
	starters := []*line.Line{s.newLine()}
	if s.All && !s.world.AtMostOnce {
		starters = append(starters, s.newLine())
	}
	var started []*Process
	since := time.Now()
	for _, l := range starters {
		if s.Dead {
			l.Silence(s.Direction)
		}
		started = append(started, s.behind(l, Instance, nil))
	}
	// One more is told to end before it has come anywhere.
	stopped := s.newLine()
	if s.Dead {
		stopped.Silence(s.Direction)
	}
	ending := s.behind(stopped, Instance, nil)
	s.cutStarts(append(started[:len(started):len(started)], ending))
	s.Hit()
	s.ends(ending)
	from := since
	if s.Dead {
		if len(sound) > 0 {
			s.recovers(since) // nobody waits for it
		} else {
			Pause(s.world.Session + 2*time.Second)
		}
		for _, p := range started {
			if _, told := s.first(p, wordHealthy, since); told {
				s.failf("%s says that it is ready, and its server has never answered", p.Process)
			}
		}
		from = s.restore(started...)
	}
	for n, p := range started {
		s.Wait(s.limit(), func() bool { return p.Gone() || s.isHealthy(p) })
		if p.Gone() { // with a clear error; whoever runs it starts it again
			s.verdict.Note = "a start ended with an error and was repeated"
			s.Logf("%s ended: %v\n%s", p.Process, p.command.ProcessState, p.Output())
			started[n] = s.behind(s.lines[p], Instance, nil)
		}
	}
	if s.All || !s.Dead || len(sound) == 0 {
		s.recovers(from)
	}
	s.readyAgain(from, started...)
	s.learned(since, append(started, ending)...)
	s.alone(append(started, sound...))
}

// cutStarts waits until processes reach their server, and silences what they have
// opened so far.
func (s *silent) cutStarts(started []*Process) {
	for _, p := range started {
		l := s.lines[p]
		s.Until(p.Process+" reaches its server", readyTime, func() bool {
			c := l.Counts()
			return c.Accepted > 0 && (s.Dead || c.FromServer > 0)
		})
		if !s.Dead {
			l.SilenceOpen(s.Direction)
		}
	}
}

func (s *silent) stopping() {
	s.work.Takes = 150 * time.Millisecond // something is in hand
	instances, publisher := s.instances()
	hit := s.hit(instances, publisher)
	since := s.hush(hit...)
	stopped := instances[:1]
	if s.All {
		stopped = instances
	}
	s.ends(stopped...)
	if len(stopped) == len(instances) {
		from := s.restore(publisher)
		next := s.begin(Instance, nil)
		s.recovers(from)
		s.readyAgain(from, next)
	} else {
		s.recovers(since)
	}
	s.learned(since, hit...)
}

// killed ends a process as kill -9 does, in the middle of what it does, behind a
// silent line: the server is told nothing and keeps what that process had open.
func (s *silent) killed() {
	started := time.Now()
	sound := s.begin(Instance, nil)
	s.calibrate(sound, started)
	s.Ready(sound)
	victim := s.begin(s.Role, func(o *Order) { o.Point, o.Count, o.Halt = s.Point, 5, true })
	publisher := victim
	if s.Role != Publisher {
		publisher = s.begin(Publisher, nil)
	}
	s.Until("the process comes to "+string(s.Point), readyTime, func() bool { return s.told(victim, wordHalted) > 0 })
	s.lines[victim].Silence(line.Both)
	since := time.Now()
	victim.Kill()
	s.Hit()
	if publisher == victim {
		s.begin(Publisher, nil)
	}
	s.recovers(since)
	s.readyAgain(since, sound)
}
