package streams

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/rueidis"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/driver/drivertest"
)

// Two channels, of which a release knows one or both.
var (
	aDone = tidings.Define[tickPayload]("releases.a.done", 1, tidings.Repeatable)
	bDone = tidings.Define[tickPayload]("releases.b.done", 1, tidings.Repeatable)
)

// releases are the instances of one subscription, and what became of its events.
type releases struct {
	open func() *Driver

	mu        sync.Mutex
	published map[string][]string // ids, by type
	handled   map[string][]string // by id: the releases that handled it
}

// running is one instance.
type running struct {
	bus  *tidings.Bus
	stop func()
}

// run starts an instance that handles some types, from now on or from the beginning.
func (r *releases) run(t *testing.T, name, subscription string, startAt tidings.StartAt, contracts ...tidings.Contract[tickPayload]) *running {
	t.Helper()
	bus := tidings.New(r.open(), &tidings.Options{Logger: slog.New(slog.DiscardHandler)})
	var reactions []tidings.Reaction
	for _, contract := range contracts {
		reactions = append(reactions, contract.On(func(_ context.Context, e tidings.Event[tickPayload]) error {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.handled[e.ID()] = append(r.handled[e.ID()], name)
			return nil
		}))
	}
	former := strings.Fields(subscription)
	options := &tidings.SubscribeOptions{StartAt: startAt, UnorderedAcrossTypes: true, FormerNames: former[1:]}
	bus.Module("releases").Subscribe(former[0], options, reactions...)
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() {
		if err := bus.Run(ctx); err != nil {
			t.Errorf("%s: Run: %v", name, err)
		}
	})
	stop := sync.OnceFunc(func() { cancel(); done.Wait() })
	t.Cleanup(stop)
	if err := bus.Ready(ctx); err != nil {
		t.Fatalf("%s: Ready: %v", name, err)
	}
	return &running{bus, stop}
}

// publish stores events of each type, of many aggregates.
func (r *releases) publish(t *testing.T, by *running, each int, contracts ...tidings.Contract[tickPayload]) {
	t.Helper()
	for n := range each {
		for _, contract := range contracts {
			e := contract.New(fmt.Sprint("aggregate-", n%16), tickPayload{n})
			if err := by.bus.Publish(t.Context(), e); err != nil {
				t.Fatal(err)
			}
			r.mu.Lock()
			r.published[contract.Type()] = append(r.published[contract.Type()], e.ID())
			r.mu.Unlock()
		}
	}
}

// count is how many of the published events of a type were handled.
func (r *releases) count(contract tidings.Contract[tickPayload]) (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, id := range r.published[contract.Type()] {
		if len(r.handled[id]) > 0 {
			n++
		}
	}
	return n
}

// wait waits until that many of each are handled.
func (r *releases) wait(t *testing.T, what string, a, b int) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); r.count(aDone) != a || r.count(bDone) != b; {
		if time.Now().After(deadline) {
			t.Fatalf("%s: %d events of a and %d of b are handled, want %d and %d", what, r.count(aDone), r.count(bDone), a, b)
		}
		pause(t.Context(), 10*time.Millisecond)
	}
}

// by are the releases that handled events of a type.
func (r *releases) by(contract tidings.Contract[tickPayload]) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var names []string
	for _, id := range r.published[contract.Type()] {
		for _, name := range r.handled[id] {
			if !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	slices.Sort(names)
	return strings.Join(names, " ")
}

func eachRelease(t *testing.T, test func(t *testing.T, r *releases, admin rueidis.Client)) {
	eachServer(t, func(t *testing.T, url, namespace string) {
		r := &releases{published: make(map[string][]string), handled: make(map[string][]string)}
		r.open = func() *Driver {
			d, err := New(Options{Client: clientOption(t, url, nil), Namespace: namespace, Shards: 4, LeaseTime: 2 * time.Second, Retention: time.Millisecond, TrimInterval: time.Hour})
			if err != nil {
				t.Fatal(err)
			}
			d.waitTime = 20 * time.Millisecond // miniredis does not notice that a waiting client is gone
			return d
		}
		test(t, r, plainClient(t, url))
	})
}

// An old release and a new one with a channel more run beside each other for as long
// as they like: whatever is published is handled, each by one that knows it.
func TestReleasesRunBesideEachOther(t *testing.T) {
	eachRelease(t, func(t *testing.T, r *releases, _ rueidis.Client) {
		old := r.run(t, "old", "side", tidings.StartBeginning, aDone)
		r.publish(t, old, 10, aDone)
		r.wait(t, "the old one alone", 10, 0)
		next := r.run(t, "new", "side", tidings.StartBeginning, aDone, bDone)
		r.publish(t, old, 90, aDone, bDone)
		r.publish(t, next, 10, bDone)
		r.wait(t, "both", 100, 100)
		if by := r.by(bDone); by != "new" {
			t.Errorf("b was handled by %q", by)
		}
		if len(old.bus.Health().Subscriptions[0].Lacks) != 1 {
			drivertest.Eventually(t, "the old release says what it lacks", func() bool { return len(old.bus.Health().Subscriptions[0].Lacks) == 1 })
		}
		third := r.run(t, "third", "side", tidings.StartBeginning, bDone)
		r.publish(t, third, 50, aDone, bDone)
		r.wait(t, "three", 150, 150)
	})
}

// A release is taken back and deployed again: what came meanwhile on the channel that
// only it knows waits for it, and is not trimmed.
func TestAReleaseIsTakenBackAndDeployedAgain(t *testing.T) {
	eachRelease(t, func(t *testing.T, r *releases, _ rueidis.Client) {
		next := r.run(t, "new", "back", tidings.StartNow, aDone, bDone)
		r.publish(t, next, 50, aDone, bDone)
		r.wait(t, "deployed", 50, 50)
		next.stop()
		old := r.run(t, "old", "back", tidings.StartNow, aDone)
		r.publish(t, old, 50, aDone, bDone)
		r.wait(t, "taken back", 100, 50)
		d := r.open()
		defer func() { _ = d.Close(t.Context()) }()
		for _, channel := range []string{"releases.a.done", "releases.b.done"} {
			if err := d.prepare(t.Context(), channel); err != nil {
				t.Fatal(err)
			}
		}
		pause(t.Context(), 10*time.Millisecond) // more than the retention
		if err := d.trim(t.Context()); err != nil {
			t.Fatal(err)
		}
		old.stop()
		again := r.run(t, "again", "back", tidings.StartNow, aDone, bDone)
		r.publish(t, again, 10, aDone, bDone)
		r.wait(t, "deployed again", 110, 110)
	})
}

// A channel that is new to a known subscription begins at its own StartAt.
func TestANewChannelBeginsAtItsOwnStart(t *testing.T) {
	eachRelease(t, func(t *testing.T, r *releases, _ rueidis.Client) {
		for n, start := range []struct {
			at   tidings.StartAt
			want int
		}{{tidings.StartBeginning, 15}, {tidings.StartNow, 5}} {
			r.mu.Lock()
			clear(r.published)
			r.mu.Unlock()
			name := fmt.Sprint("fresh-", n)
			old := r.run(t, "old", name, start.at, aDone)
			r.publish(t, old, 10, aDone, bDone)
			r.wait(t, "the old release", 10, 0)
			old.stop()
			next := r.run(t, "new", name, start.at, aDone, bDone)
			r.publish(t, next, 5, aDone, bDone)
			r.wait(t, fmt.Sprintf("start %+v", start.at), 15, start.want)
			next.stop()
		}
	})
}

// Two services have one name by mistake, and different channels: each handles what it
// knows.
func TestTwoServicesUnderOneName(t *testing.T) {
	eachRelease(t, func(t *testing.T, r *releases, _ rueidis.Client) {
		one := r.run(t, "one", "mistake", tidings.StartBeginning, aDone)
		two := r.run(t, "two", "mistake", tidings.StartBeginning, bDone)
		r.publish(t, one, 50, aDone, bDone)
		r.publish(t, two, 50, aDone, bDone)
		r.wait(t, "both", 100, 100)
		if a, b := r.by(aDone), r.by(bDone); a != "one" || b != "two" {
			t.Errorf("a was handled by %q, b by %q", a, b)
		}
	})
}

// A channel that a release leaves keeps its position, and holds what it has not
// finished, until its type is forgotten; while an instance reads it, it cannot be.
func TestAChannelIsLeftUntilItsTypeIsForgotten(t *testing.T) {
	eachRelease(t, func(t *testing.T, r *releases, admin rueidis.Client) {
		both := r.run(t, "both", "leaves", tidings.StartBeginning, aDone, bDone)
		r.publish(t, both, 20, aDone, bDone)
		r.wait(t, "both", 20, 20)
		d := r.open()
		defer func() { _ = d.Close(t.Context()) }()
		if known, err := d.ForgetType(t.Context(), "releases.leaves", "releases.b.done"); err == nil || !strings.Contains(err.Error(), driver.ErrInUse.Error()) {
			t.Errorf("forgotten while an instance reads it: %t %v", known, err)
		}
		topology := both.bus.Describe()
		if got := found(t, d, topology, "subscription-channel-unread"); got != nil {
			t.Errorf("while it is read: %v", got)
		}
		both.stop()
		less := r.run(t, "less", "leaves", tidings.StartBeginning, aDone)
		r.publish(t, less, 20, aDone, bDone)
		r.wait(t, "with less", 40, 20)
		if got := found(t, d, topology, "subscription-channel-unread"); !slices.Equal(got, []string{"weak subscription releases.leaves"}) {
			t.Errorf("while nobody reads it: %v", got)
		}
		groups := func() (n int) {
			for shard := range d.options.Shards {
				known, err := groupsOf(admin.Do(t.Context(), admin.B().XinfoGroups().Key(d.stream("releases.b.done", shard)).Build()))
				if err != nil {
					t.Fatal(err)
				}
				if _, has := known["releases.leaves"]; has {
					n++
				}
			}
			return n
		}
		left := func() (n int64) {
			if err := d.prepare(t.Context(), "releases.b.done"); err != nil {
				t.Fatal(err)
			}
			pause(t.Context(), 10*time.Millisecond) // more than the retention
			if err := d.trim(t.Context()); err != nil {
				t.Fatal(err)
			}
			for shard := range d.options.Shards {
				length, err := admin.Do(t.Context(), admin.B().Xlen().Key(d.stream("releases.b.done", shard)).Build()).AsInt64()
				if err != nil {
					t.Fatal(err)
				}
				n += length
			}
			return n
		}
		if n := groups(); n != 4 || left() < 20 {
			t.Errorf("the group is on %d shards of 4, and %d entries are left of 20 that wait", n, left())
		}
		if known, err := d.ForgetType(t.Context(), "releases.leaves", "releases.b.done"); err != nil || !known {
			t.Fatalf("ForgetType: %t %v", known, err)
		}
		if known, err := d.ForgetType(t.Context(), "releases.leaves", "releases.b.done"); err != nil || known {
			t.Errorf("ForgetType once more: %t %v", known, err)
		}
		if n := groups(); n != 0 || left() != 0 {
			t.Errorf("the group is on %d shards, and %d entries are left", n, left())
		}
		if got := found(t, d, topology, "subscription-channel-unread"); got != nil {
			t.Errorf("when it is forgotten: %v", got)
		}
		r.publish(t, less, 5, aDone, bDone)
		r.wait(t, "it goes on", 45, 20)
		less.stop()
		again := r.run(t, "again", "leaves", tidings.StartNow, aDone, bDone) // as a channel that is new
		r.publish(t, again, 5, aDone, bDone)
		r.wait(t, "the channel begins anew", 50, 25)
	})
}

// A renaming moves the positions of every channel that was handled under the former
// name, also of one that the release which renames has not.
func TestARenamingMovesChannelsThatItsReleaseLacks(t *testing.T) {
	eachRelease(t, func(t *testing.T, r *releases, _ rueidis.Client) {
		before := r.run(t, "before", "before", tidings.StartBeginning, aDone, bDone)
		r.publish(t, before, 20, aDone, bDone)
		r.wait(t, "under the former name", 20, 20)
		before.stop()
		less := r.run(t, "less", "after before", tidings.StartNow, aDone)
		r.publish(t, less, 20, aDone, bDone)
		r.wait(t, "renamed, with less", 40, 20)
		d := r.open()
		defer func() { _ = d.Close(t.Context()) }()
		stored, err := d.StoredSubscriptions(t.Context(), driver.StoredOptions{})
		if err != nil || len(stored) != 1 || stored[0].Name != "releases.after" {
			t.Errorf("stored are %+v, %v", stored, err)
		}
		less.stop()
		after := r.run(t, "after", "after before", tidings.StartNow, aDone, bDone)
		r.publish(t, after, 5, aDone, bDone)
		r.wait(t, "with both again", 45, 45)
		r.mu.Lock()
		defer r.mu.Unlock()
		for id, by := range r.handled {
			if len(by) > 1 {
				t.Errorf("%s was handled by %v", id, by)
			}
		}
	})
}

// What Redis lost of the record is written again as it was: an instance that lacks a
// type would finish its events unseen.
func TestALostRecordIsWrittenAgain(t *testing.T) {
	eachServer(t, func(t *testing.T, url, namespace string) {
		d, admin := newDriver(t, url, namespace), plainClient(t, url)
		a, b := driver.Declaration{Channel: "a.b.c", Type: "a.b.c"}, driver.Declaration{Channel: "a.b.c", Type: "a.b.d"}
		other := newDriver(t, url, namespace)
		for n, keeper := range []*Driver{other, d} {
			if _, err := keeper.Declare(t.Context(), "x.y", [][]driver.Declaration{{b}, {a}}[n]); err != nil {
				t.Fatal(err)
			}
		}
		if err := admin.Do(t.Context(), admin.B().Del().Key(d.typesKey("x.y")).Build()).Error(); err != nil {
			t.Fatal(err)
		}
		if all, err := d.Declared(t.Context(), "x.y"); err != nil || !slices.Equal(all, []driver.Declaration{a, b}) {
			t.Errorf("the record has %v: %v", all, err)
		}
		if all, err := newDriver(t, url, namespace).Declared(t.Context(), "x.y"); err != nil || len(all) != 2 {
			t.Errorf("for another process it has %v: %v", all, err)
		}
	})
}
