package drivertest

import (
	"cmp"
	"strings"
	"testing"
	"time"

	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/internal/testtime"
)

// Harness is how the suite reaches the driver under test.
type Harness struct {
	// NewBroker prepares a broker for one case, with nothing on it: a server in
	// the process, or a namespace of its own on one that is shared. It cleans up
	// with t.Cleanup; every driver value is closed by then.
	NewBroker func(t testing.TB) Broker

	// Patience is how long the suite waits for something that is sure to come.
	// 0 means 20 seconds.
	Patience time.Duration

	// TimeScale stretches every time of the suite, Patience and the backoffs of
	// handlers included, for a slow broker. 0 means 1. On a slow or busy machine the
	// environment variable TIDINGS_TEST_SCALE multiplies it.
	TimeScale float64

	// Events is how many events the case "ledger" has, for a broker to which each
	// costs much. 0 means 10 000.
	Events int
}

// Broker is the broker of one case.
type Broker struct {
	// Open makes a driver value. Several values are several processes over the
	// same state, as far as the driver can do that. The suite closes each.
	Open func(t testing.TB) driver.Driver

	// PutRaw stores a message that no publisher of ours wrote. Nil means
	// Publish of a driver value, for which a body is bytes.
	PutRaw func(t testing.TB, message driver.Message)

	// DeadLetters returns what PutDeadLetter of the driver has stored, in any
	// order. Nil means that it cannot be read back: then only the engine's word
	// for it is looked at.
	DeadLetters func(t testing.TB) []driver.DeadLetter

	// Interrupt makes the broker unreachable until the function that it returns
	// is called: a restart, or a broken connection. What was stored stays. Nil
	// means that this cannot be done here.
	Interrupt func(t testing.TB) (restore func())
}

// Case is one row of the table.
type Case struct {
	// Name is the name of the subtest.
	Name string
	// Proves is the sentence of the contract that the case holds a driver to.
	Proves string
	// Needs is what the driver has to be able to do, or not to do, for the case
	// to mean something. Elsewhere it is skipped.
	Needs []string
}

// Cases returns the table, in the order in which [Run] goes through it.
func Cases() []Case {
	var all []Case
	for _, c := range cases {
		row := Case{Name: c.name, Proves: c.proves}
		for _, n := range c.needs {
			row.Needs = append(row.Needs, n.word)
		}
		all = append(all, row)
	}
	return all
}

// Run holds a driver to its contract, one parallel subtest per case.
func Run(t *testing.T, harness Harness) {
	t.Helper()
	if harness.NewBroker == nil {
		t.Fatal("drivertest: Harness.NewBroker is nil")
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			t.Cleanup(func() {
				if t.Failed() {
					t.Logf("the driver has to hold to this: %s", c.proves)
				}
			})
			s := newScene(t, harness)
			if missing := s.missing(c); missing != "" {
				t.Skipf("not for this driver, the case needs: %s", missing)
			}
			c.run(s)
		})
	}
}

// conformance is one case with what it does.
type conformance struct {
	name   string
	proves string
	needs  []need
	run    func(*scene)
}

// need is a condition on the driver or its harness.
type need struct {
	word string
	met  func(*scene) bool
}

var (
	durable   = need{"Durable", func(s *scene) bool { return s.features.Durable }}
	volatile  = need{"not Durable", func(s *scene) bool { return !s.features.Durable }}
	ordered   = need{"Ordered", func(s *scene) bool { return s.features.Ordered }}
	unordered = need{"not Ordered", func(s *scene) bool { return !s.features.Ordered }}
	groups    = need{"Groups", func(s *scene) bool { return s.features.Groups }}
	alone     = need{"not Groups", func(s *scene) bool { return !s.features.Groups }}
	broadcast = need{"Broadcast", func(s *scene) bool { return s.features.Broadcast }}
	keeping   = need{"not Broadcast", func(s *scene) bool { return !s.features.Broadcast }}
	sources   = need{"Sources", func(s *scene) bool { return s.features.Sources }}
	owners    = need{"Sources, or not Groups", func(s *scene) bool { return s.features.Sources || !s.features.Groups }}
	fanOut    = need{"FanOut", func(s *scene) bool { return s.features.FanOut }}
	noFanOut  = need{"not FanOut", func(s *scene) bool { return !s.features.FanOut }}
	history   = need{"History", func(s *scene) bool { return s.features.History }}
	noHistory = need{"not History", func(s *scene) bool { return !s.features.History }}
	wire      = need{"bodies of bytes (not Values)", func(s *scene) bool { return !s.features.Values }}
	declaring = need{"Declarations", func(s *scene) bool { return s.declaring }}
	renaming  = need{"Renamer", func(s *scene) bool { return s.renaming }}
	outages   = need{"Broker.Interrupt", func(s *scene) bool { return s.broker.Interrupt != nil }}
)

// missing names the needs that are not met, or returns "".
func (s *scene) missing(c conformance) string {
	var words []string
	for _, n := range c.needs {
		if !n.met(s) {
			words = append(words, n.word)
		}
	}
	return strings.Join(words, ", ")
}

func (h Harness) patience() time.Duration { return h.scale(cmp.Or(h.Patience, 20*time.Second)) }

func (h Harness) scale(d time.Duration) time.Duration {
	return testtime.Scaled(time.Duration(float64(d) * cmp.Or(h.TimeScale, 1)))
}
