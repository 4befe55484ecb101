package deployments

import (
	"strings"
	"testing"

	"github.com/tidings-go/tidings"
)

// scene publishes events of one aggregate and lets an instance of a release say what
// becomes of them.
type scene struct {
	ledger *ledger
	ids    []string
}

func newScene(facts ...fact) *scene {
	s := &scene{ledger: newLedger()}
	for _, f := range facts {
		made := s.ledger.next(f, "aggregate")
		s.ledger.stored([]tidings.DomainEvent{made})
		s.ids = append(s.ids, made.ID())
	}
	return s
}

func (s *scene) say(r release, n int, kinds ...tidings.Kind) {
	for _, kind := range kinds {
		s.ledger.observe("one", &r, tidings.Observation{Kind: kind, ID: s.ids[n]})
	}
}

// handle is what is said of an event that is handled.
func (s *scene) handle(r release, n int) {
	s.say(r, n, tidings.Received, tidings.Started, tidings.Handled)
}

// effects are one for each event, but for some.
func (s *scene) effects(but map[int]int) map[string]int {
	all := make(map[string]int)
	for n, id := range s.ids {
		all[id] = 1
		if times, other := but[n]; other {
			all[id] = times
		}
	}
	return all
}

// The ledger counts what is lost, out of order, doubled and dead, and nothing else.
func TestTheLedgerCountsWhatIsWrong(t *testing.T) {
	both := handling(opened, answered)
	for name, c := range map[string]struct {
		happens func(*scene)
		but     map[int]int
		want    Verdict
	}{
		"all is well":       {func(s *scene) { s.handle(both, 0); s.handle(both, 1); s.handle(both, 2) }, nil, Verdict{}},
		"never handled":     {func(s *scene) { s.handle(both, 0); s.handle(both, 1) }, nil, Verdict{Lost: 1}},
		"without an effect": {func(s *scene) { s.handle(both, 0); s.handle(both, 1); s.handle(both, 2) }, map[int]int{1: 0}, Verdict{Lost: 1}},
		"two effects":       {func(s *scene) { s.handle(both, 0); s.handle(both, 1); s.handle(both, 2) }, map[int]int{1: 2}, Verdict{DoubleEffects: 1}},
		"overtaken": {func(s *scene) {
			s.say(both, 0, tidings.Started)
			s.handle(both, 1)
			s.say(both, 0, tidings.Handled)
			s.handle(both, 2)
		}, nil, Verdict{Disordered: 1}},
		"overtaken by all that follow": {func(s *scene) { s.handle(both, 1); s.handle(both, 2); s.handle(both, 0) }, nil, Verdict{Disordered: 2}},
		"delivered again in order": {func(s *scene) {
			s.handle(both, 0)
			s.handle(both, 1)
			s.say(both, 0, tidings.Started, tidings.Deduplicated)
			s.handle(both, 2)
		}, nil, Verdict{}},
		"dead": {func(s *scene) {
			s.say(both, 0, tidings.Started, tidings.DeadLettered)
			s.handle(both, 1)
			s.handle(both, 2)
		}, nil, Verdict{Dead: 1}},
		"passed by a release that knows nothing of it": {func(s *scene) {
			s.handle(both, 0)
			s.say(handling(opened), 1, tidings.Ignored)
			s.handle(both, 2)
		}, nil, Verdict{Lost: 1}},
		"passed by a release that ignores it": {func(s *scene) {
			s.handle(both, 0)
			s.say(handling(opened).ignoring(answered), 1, tidings.Ignored)
			s.handle(both, 2)
		}, nil, Verdict{Ignored: 1}},
		"forgotten": {func(s *scene) { s.ledger.ignore(answered.Type()); s.handle(both, 0); s.handle(both, 2) }, nil, Verdict{Ignored: 1}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScene(opened, answered, opened)
			c.happens(s)
			got := s.ledger.count(s.effects(c.but))
			got.examples, c.want.Published = nil, 3
			if got.String() != c.want.String() {
				t.Errorf("got  %v\nwant %v", got, c.want)
			}
			if got.Holds() != (c.want.Lost+c.want.Disordered+c.want.DoubleEffects+c.want.Dead == 0) {
				t.Errorf("%v: holds: %v", got, got.Holds())
			}
		})
	}
}

// Nobody is sure to handle what an instance that has the channel cannot read, nor
// what waits behind it; what a channel's only reader has is not held up by others.
func TestOnlyWhatIsSureToComeIsWaitedFor(t *testing.T) {
	older, newer := handling(opened), handling(opened, answered)
	stranger := handling(placed)
	for name, c := range map[string]struct {
		running []*release
		before  func(*scene)
		want    int
	}{
		"with the new release alone":     {[]*release{&newer}, nil, 3},
		"with both":                      {[]*release{&older, &newer}, nil, 1},
		"with the old release alone":     {[]*release{&older}, nil, 1},
		"nobody has the channel":         {[]*release{&stranger}, nil, 0},
		"another has other channels":     {[]*release{&stranger, &newer}, nil, 3},
		"what was in the way is handled": {[]*release{&older, &newer}, func(s *scene) { s.handle(newer, 0); s.handle(newer, 1) }, 1},
		"it comes again to an old one": {[]*release{&older, &newer}, func(s *scene) {
			s.handle(newer, 0)
			s.handle(newer, 1)
			s.say(older, 1, tidings.Received, tidings.Held)
		}, 0},
		"it is forgotten": {[]*release{&older}, func(s *scene) { s.ledger.ignore(answered.Type()) }, 3},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScene(opened, answered, opened)
			if c.before != nil {
				c.before(s)
			}
			if got := s.ledger.expected(c.running, nil); len(got) != c.want {
				t.Errorf("%d are waited for, want %d: %v", len(got), c.want, s.ledger.describe(got))
			}
		})
	}
}

// A version that says from which one it can be read is read by older handlers.
func TestAReadableVersionIsWaitedFor(t *testing.T) {
	older := handling(priced)
	for version, want := range map[fact]int{pricedAnew: 0, pricedReadable: 1, priced: 1} {
		s := newScene(version)
		if got := s.ledger.expected([]*release{&older}, nil); len(got) != want {
			t.Errorf("%v: %d are waited for, want %d", version, len(got), want)
		}
	}
}

func TestTheTableHasACellForEverything(t *testing.T) {
	var all []Verdict
	for _, change := range Changes() {
		for _, schedule := range Schedules() {
			v := Verdict{World: "a", Change: change, Schedule: schedule, Published: 30, Kept: 4}
			if schedule == rolling {
				v = Verdict{World: "a", Change: change, Schedule: schedule, Not: "it cannot be"}
			}
			all = append(all, v)
		}
	}
	table := Table([]string{"a", "b"}, all)
	for text, want := range map[string]int{
		"| 0 / 0 / 0 of 30, kept 4 | did not run |": 2 * len(Changes()),
		"| – (1) | did not run |":                   len(Changes()),
		"\n1. it cannot be\n":                       1,
	} {
		if got := strings.Count(table, text); got != want {
			t.Errorf("%q is there %d times, want %d:\n%s", text, got, want, table)
		}
	}
}
