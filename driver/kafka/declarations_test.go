package kafka

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"

	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/driver/drivertest"
)

func kept(types ...string) (all []driver.Declaration) {
	for _, eventType := range types {
		all = append(all, driver.Declaration{Channel: "a.b.c", Type: eventType})
	}
	return all
}

func declare(t testing.TB, d *Driver, name string, handled ...driver.Declaration) {
	t.Helper()
	if _, err := d.Declare(t.Context(), name, handled); err != nil {
		t.Fatal(err)
	}
}

func wantKept(t testing.TB, d *Driver, name string, want ...driver.Declaration) {
	t.Helper()
	if got, err := d.Declared(t.Context(), name); err != nil || !slices.Equal(got, want) {
		t.Errorf("the record of %s has %v (%v), want %v", name, got, err, want)
	}
}

// Where topics are made by hand, an application whose record has none does not start,
// and says so; a reader without one finds nothing, and makes none.
func TestTheTopicOfDeclarationsIsMissing(t *testing.T) {
	cluster := newCluster(t)
	d := newDriver(t, cluster.ListenAddrs(), func(o *Options) { o.Provision = ProvisionNever })
	_, err := d.Declare(t.Context(), "x.y", kept("a.b.c"))
	if !errors.Is(err, kerr.UnknownTopicOrPartition) || !strings.Contains(err.Error(), "x.y") || !strings.Contains(err.Error(), "tidings.declarations") {
		t.Errorf("Declare: %v", err)
	}
	wantKept(t, d, "x.y")
	if known, err := d.ForgetType(t.Context(), "x.y", "a.b.c"); known || err != nil {
		t.Errorf("ForgetType: %t, %v", known, err)
	}
	maker := newDriver(t, cluster.ListenAddrs())
	if resources, err := maker.Provision(t.Context(), declared("x.y", "a.b.c"), false); err != nil || resources[2].Name != "tidings.declarations" {
		t.Fatalf("%+v, %v", resources, err)
	}
	declare(t, d, "x.y", kept("a.b.c")...)
	wantKept(t, d, "x.y", kept("a.b.c")...)
	// What was there and is gone is no empty record: events would be finished unseen.
	if _, err := maker.admin.DeleteTopic(t.Context(), "tidings.declarations"); err != nil {
		t.Fatal(err)
	}
	if all, err := d.Declared(t.Context(), "x.y"); err == nil {
		t.Errorf("of a topic that was deleted: %v", all)
	}
}

// A reader that has seen the topic goes on where it was, and begins anew where the
// beginning is gone or the reader is old.
func TestReadingDeclarations(t *testing.T) {
	cluster := newCluster(t)
	d, other := newDriver(t, cluster.ListenAddrs()), newDriver(t, cluster.ListenAddrs())
	declare(t, d, "x.y", kept("a.b.c", "a.b.d")...)
	wantKept(t, other, "x.y", kept("a.b.c", "a.b.d")...)
	read := func(d *Driver) int64 { return d.declarations.next }
	if read(other) != 2 {
		t.Errorf("the reader is at %d, want behind both", read(other))
	}
	declare(t, d, "x.y", kept("a.b.c")...)
	wantKept(t, other, "x.y", kept("a.b.c", "a.b.d")...)
	if read(other) != 2 {
		t.Error("what is known was written again")
	}
	if _, err := other.ForgetType(t.Context(), "x.y", "a.b.d"); err != nil {
		t.Fatal(err)
	}
	wantKept(t, d, "x.y", kept("a.b.c")...)
	wantKept(t, newDriver(t, cluster.ListenAddrs()), "x.y", kept("a.b.c")...) // the last record takes one out

	declare(t, d, "x.z", kept("a.b.e")...)
	offsets := make(kadm.Offsets)
	offsets.AddOffset(d.DeclarationsName(), 0, 3, -1)
	if _, err := d.admin.DeleteRecords(t.Context(), offsets); err != nil {
		t.Fatal(err)
	}
	wantKept(t, newDriver(t, cluster.ListenAddrs()), "x.z", kept("a.b.e")...)
	d.declarations.began = time.Now().Add(-2 * recordAge)
	wantKept(t, d, "x.z", kept("a.b.e")...)
	wantKept(t, d, "x.y")
}

// When the last type of a channel is forgotten the position goes with it, so that a
// release which brings it back begins at its own StartAt; what is read stays.
func TestRealForgettingTheLastTypeForgetsThePosition(t *testing.T) {
	d, _ := onReal(t)
	declare(t, d, "x.y", append(kept("a.b.c"), driver.Declaration{Channel: "d.e.f", Type: "d.e.f"})...)
	s := drivertest.NewSink()
	r := drivertest.Start(t, d, subscription("x.y", "a.b.c", "d.e.f"), s)
	publish(t, d, message("a.b.c", "k", "1"), message("d.e.f", "k", "2"))
	drivertest.Eventually(t, "both", func() bool { return s.Count() == 2 })
	r.Finish(t, s.Got()...)
	positions := func() int {
		t.Helper()
		stored, err := d.storedPositions(t.Context(), d.GroupName("x.y"), []string{d.BrokerName("a.b.c"), d.BrokerName("d.e.f")})
		if err != nil {
			t.Fatal(err)
		}
		return len(stored)
	}
	forget := func(eventType string) {
		t.Helper()
		if known, err := d.ForgetType(t.Context(), "x.y", eventType); err != nil || !known {
			t.Fatal(known, err)
		}
	}
	forget("d.e.f")
	if n := positions(); n != 2 {
		t.Errorf("%d positions while both are read, want 2", n)
	}
	declare(t, d, "x.y", driver.Declaration{Channel: "d.e.f", Type: "d.e.f"})
	r.End(t)
	forget("d.e.f")
	if n := positions(); n != 1 {
		t.Errorf("%d positions, want that of the other channel", n)
	}
	deleted, err := d.DeleteSubscription(t.Context(), "x.y")
	if err != nil || !slices.ContainsFunc(deleted, func(what string) bool { return strings.HasPrefix(what, "1 types of topic") }) {
		t.Errorf("deleted %q, %v", deleted, err)
	}
	wantKept(t, d, "x.y")
}

func TestRealInspectDeclarations(t *testing.T) {
	d, _ := onReal(t)
	topology := declared("x.y", "a.b.c")
	if _, err := d.Provision(t.Context(), topology, false); err != nil {
		t.Fatal(err)
	}
	if got := found(t, d, topology, "kafka-declarations-expire"); got != nil {
		t.Errorf("as it is made: %v", got)
	}
	policy := "delete"
	if _, err := d.admin.AlterTopicConfigs(t.Context(), []kadm.AlterConfig{{Name: "cleanup.policy", Value: &policy}}, d.DeclarationsName()); err != nil {
		t.Fatal(err)
	}
	drivertest.Eventually(t, "the finding", func() bool { return len(found(t, d, topology, "kafka-declarations-expire")) == 1 })
}
