package storetest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/outbox"
)

// Administered is a store that knows what it keeps under which name, and of which
// aggregate.
type Administered[TX any] interface {
	SQL[TX]
	driver.Keeper
	driver.Renamer
	driver.Forgetter
	driver.Inspector
	Claims() driver.Claims
	DeadLetters() driver.DeadLetterStore
	Lanes() driver.LaneStore
	Log() outbox.Log
}

// Administration holds a store to [driver.Keeper], [driver.Renamer],
// [driver.Forgetter] and [driver.Inspector]. open makes an empty database; noLog
// says that it is none that subscriptions can read.
func Administration[TX any](t *testing.T, open func(t *testing.T) Database[TX], noLog bool) {
	t.Helper()
	for name, test := range map[string]func(t *testing.T, s Administered[TX], noLog bool){
		"renamed":             renamed[TX],
		"renamed in batches":  renamedInBatches[TX],
		"renamed beside":      renamedBeside[TX],
		"renamed while alive": renamedAlive[TX],
		"listed and deleted":  listedAndDeleted[TX],
		"forgotten":           forgotten[TX],
		"not finished":        notForgotten[TX],
		"inspected":           inspected[TX],
	} {
		t.Run(name, func(t *testing.T) {
			s, ok := open(t).Open(t).(Administered[TX])
			if !ok {
				t.Fatalf("the store is not administered")
			}
			test(t, s, noLog)
		})
	}
}

// once and repeatable are keys as the engine writes them.
func once(eventType, aggregate string) string { return eventType + "\n" + aggregate }
func repeatable(eventType, id, aggregate string) string {
	return fmt.Sprintf("%s\n%d\n%s%s", eventType, len(id), id, aggregate)
}

func handled(t *testing.T, c driver.Claims, subscription string, keys ...string) {
	t.Helper()
	for _, key := range keys {
		r := driver.ClaimRequest{Subscription: subscription, Key: key, Owner: "o", Lease: time.Minute, Digest: 7}
		if _, err := c.Claim(t.Context(), r); err != nil {
			t.Fatal(err)
		}
		if err := c.Finish(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
}

func isHandled(t *testing.T, c driver.Claims, subscription, key string) bool {
	t.Helper()
	r := driver.ClaimRequest{Subscription: subscription, Key: key, Owner: "asks", Lease: time.Minute}
	answer, err := c.Claim(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	if answer.State == driver.ClaimFresh {
		if err := c.Release(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	return answer.State == driver.ClaimDone
}

func letterOf(subscription, aggregate, id string) driver.DeadLetter {
	return driver.DeadLetter{Subscription: subscription, Channel: "a.b.c", Type: "a.b.c", ID: id, AggregateID: aggregate, Reason: "exhausted", Err: "no", Attempts: 3, FailedAt: time.Now(), Body: []byte(`{"name":"Ada"}`)}
}

// fill stores something of every kind under a name, of aggregate "ada".
func fill[TX any](t *testing.T, s Administered[TX], subscription string, noLog bool) {
	t.Helper()
	handled(t, s.Claims(), subscription, once("a.b.c", "ada"), repeatable("d.e.f", "1", "ada"), repeatable("d.e.f", "1a", "da"), once("a.b.c", "grace-ada"))
	for _, aggregate := range []string{"ada", "grace"} {
		if err := s.DeadLetters().PutDeadLetter(t.Context(), letterOf(subscription, aggregate, "dead-"+aggregate)); err != nil {
			t.Fatal(err)
		}
	}
	if !noLog {
		begin(t, s.Log(), subscription, driver.StartAt{Mode: driver.StartBeginning}, "a.b.c")
		if _, err := s.Log().Declare(t.Context(), subscription, []driver.Declaration{{Channel: "a.b.c", Type: "a.b.c"}}); err != nil {
			t.Fatal(err)
		}
	}
}

func parkFor[TX any](t *testing.T, s Administered[TX], subscription, aggregate string) driver.Ownership {
	t.Helper()
	owner, _, err := s.Lanes().Own(t.Context(), subscription, "source")
	if err != nil {
		t.Fatal(err)
	}
	lane := driver.Lane{Channel: "a.b.c", Key: aggregate}
	err = s.Lanes().Park(t.Context(), owner, []driver.Parked{{Lane: lane, Source: "source", ID: "parked-" + aggregate, Message: driver.Message{Channel: "a.b.c", Key: aggregate, Type: "a.b.c", Body: []byte("{}")}, ParkedAt: time.Now(), Time: time.Now()}})
	if err != nil {
		t.Fatal(err)
	}
	return owner
}

func stored[TX any](t *testing.T, s Administered[TX], prefix string) (names []string) {
	t.Helper()
	all, err := s.StoredSubscriptions(t.Context(), driver.StoredOptions{Prefix: prefix})
	if err != nil {
		t.Fatal(err)
	}
	for _, one := range all {
		names = append(names, one.Name)
	}
	return names
}

func renamed[TX any](t *testing.T, s Administered[TX], noLog bool) {
	fill(t, s, "x.old", noLog)
	parkFor(t, s, "x.old", "ada")
	before, _, err := s.Lanes().Own(t.Context(), "x.old", "source")
	if err != nil {
		t.Fatal(err)
	}
	renaming := driver.Subscription{Name: "x.new"}
	moved, err := s.Rename(t.Context(), "x.old", renaming)
	if err != nil || moved == 0 {
		t.Fatalf("%d, %v", moved, err)
	}
	if moved, err := s.Rename(t.Context(), "x.old", renaming); err != nil || moved != 0 {
		t.Errorf("again: %d, %v", moved, err)
	}
	if !isHandled(t, s.Claims(), "x.new", once("a.b.c", "ada")) || isHandled(t, s.Claims(), "x.old", once("a.b.c", "ada")) {
		t.Error("the dedup keys did not follow")
	}
	if letter, err := s.DeadLetters().GetDeadLetter(t.Context(), "x.new", "a.b.c/dead-ada"); err != nil || string(letter.Body) == "" {
		t.Errorf("the dead letter: %v", err)
	}
	owner, lanes, err := s.Lanes().Own(t.Context(), "x.new", "source")
	if err != nil || len(lanes) != 1 || owner.Epoch <= before.Epoch {
		t.Errorf("the parked lanes: %v, epoch %d behind %d, %v", lanes, owner.Epoch, before.Epoch, err)
	}
	if noLog {
		return
	}
	renamedInLog(t, s.Log(), func() {
		t.Helper()
		if _, err := s.Rename(t.Context(), "x.old", renaming); err != nil {
			t.Fatal(err)
		}
	})
}

// renamedInLog goes on when x.old with channel a.b.c was renamed to x.new.
func renamedInLog(t *testing.T, l outbox.Log, rename func()) {
	t.Helper()
	// The position is copied: a deployment that is taken back goes on there.
	for _, name := range []string{"x.new", "x.old"} {
		begun, err := l.Begin(t.Context(), name, []string{"a.b.c"}, driver.StartAt{Mode: driver.StartNow})
		if err != nil || len(begun) > 0 {
			t.Errorf("the position of %s: %v, %v", name, begun, err)
		}
	}
	declare := func(channels ...string) {
		t.Helper()
		for _, channel := range channels {
			if _, err := l.Declare(t.Context(), "x.old", []driver.Declaration{{Channel: channel, Type: channel}}); err != nil {
				t.Fatal(err)
			}
		}
	}
	want := func(when string, wanted map[string]int64) {
		t.Helper()
		got := make(map[string]int64)
		progress, err := l.Progress(t.Context(), "x.new", []outbox.Part{outbox.PartOf("a.b.c", "k"), outbox.PartOf("d.e.f", "k")})
		for _, p := range progress {
			got[p.Channel] = p.Position
		}
		declared, failed := l.Declared(t.Context(), "x.new")
		if err != nil || failed != nil || !maps.Equal(got, wanted) || len(declared) != len(wanted) {
			t.Errorf("%s: at %v, want %v; declared %v: %v %v", when, got, wanted, declared, err, failed)
		}
	}
	want("renamed", map[string]int64{"a.b.c": 0})
	// It was taken back, with a channel more, and is deployed again: that one is not begun anew, and the other stays.
	declare("a.b.c", "d.e.f")
	begin(t, l, "x.old", driver.StartAt{Mode: driver.StartBeginning}, "d.e.f")
	passes(t, l, "x.old", place("d.e.f", "k", 4), place("a.b.c", "k", 6))
	passes(t, l, "x.new", place("a.b.c", "k", 5))
	rename()
	want("renamed again", map[string]int64{"a.b.c": 5, "d.e.f": 4})
	// What is forgotten does not come back with the next start, only with a release that has it.
	if known, err := l.ForgetType(t.Context(), "x.new", "d.e.f"); err != nil || !known {
		t.Errorf("ForgetType: %v, %v", known, err)
	}
	rename()
	want("forgotten", map[string]int64{"a.b.c": 5})
	declare("d.e.f")
	rename()
	want("declared by a release of the former name", map[string]int64{"a.b.c": 5, "d.e.f": 4})
}

func renamedInBatches[TX any](t *testing.T, s Administered[TX], _ bool) {
	const keys = 1203
	if err := s.Transact(t.Context(), func(ctx context.Context, tx TX) error {
		for n := range keys {
			if _, err := s.Claim(ctx, tx, driver.ClaimRequest{Subscription: "x.old", Key: fmt.Sprintf("a.b.c\n%04d", n), Digest: 1}); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	moved, err := s.Rename(t.Context(), "x.old", driver.Subscription{Name: "x.new"})
	if err != nil || moved != keys {
		t.Errorf("%d, %v", moved, err)
	}
	if got := stored(t, s, ""); !slices.Equal(got, []string{"x.new"}) {
		t.Errorf("%v", got)
	}
}

// What the new name has already is not replaced, and what it has in its place is
// not lost.
func renamedBeside[TX any](t *testing.T, s Administered[TX], _ bool) {
	handled(t, s.Claims(), "x.old", "both", "old")
	handled(t, s.Claims(), "x.new", "both", "new")
	for _, subscription := range []string{"x.old", "x.new"} {
		if err := s.DeadLetters().PutDeadLetter(t.Context(), letterOf(subscription, subscription, "same")); err != nil {
			t.Fatal(err)
		}
	}
	if moved, err := s.Rename(t.Context(), "x.old", driver.Subscription{Name: "x.new"}); err != nil || moved == 0 {
		t.Errorf("%d, %v", moved, err)
	}
	for _, key := range []string{"both", "old", "new"} {
		if !isHandled(t, s.Claims(), "x.new", key) {
			t.Errorf("%s is not handled any more", key)
		}
	}
	for _, subscription := range []string{"x.old", "x.new"} {
		if letter, err := s.DeadLetters().GetDeadLetter(t.Context(), subscription, "a.b.c/same"); err != nil || letter.AggregateID != subscription {
			t.Errorf("%s: %+v, %v", subscription, letter, err)
		}
	}
}

func renamedAlive[TX any](t *testing.T, s Administered[TX], noLog bool) {
	if noLog {
		t.Skip("nobody is alive where there is no log")
	}
	fill(t, s, "x.old", noLog)
	if _, err := s.Join(t.Context(), "subscription:x.old", driver.Member{Holder: "me"}, time.Minute); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Rename(t.Context(), "x.old", driver.Subscription{Name: "x.new"}); !errors.Is(err, driver.ErrInUse) {
		t.Errorf("Rename: %v", err)
	}
	if _, err := s.DeleteSubscription(t.Context(), "x.old"); !errors.Is(err, driver.ErrInUse) {
		t.Errorf("DeleteSubscription: %v", err)
	}
	all, err := s.StoredSubscriptions(t.Context(), driver.StoredOptions{})
	if err != nil || len(all) != 1 || all[0].Instances != 1 || all[0].LastSeen.IsZero() {
		t.Errorf("%+v, %v", all, err)
	}
	if !isHandled(t, s.Claims(), "x.old", once("a.b.c", "ada")) {
		t.Error("something was moved")
	}
}

func listedAndDeleted[TX any](t *testing.T, s Administered[TX], noLog bool) {
	fill(t, s, "x.one", noLog)
	fill(t, s, "y.two", noLog)
	parkFor(t, s, "x.one", "ada")
	if got := stored(t, s, ""); !slices.Equal(got, []string{"x.one", "y.two"}) {
		t.Errorf("all: %v", got)
	}
	if got := stored(t, s, "y."); !slices.Equal(got, []string{"y.two"}) {
		t.Errorf("of y: %v", got)
	}
	all, err := s.StoredSubscriptions(t.Context(), driver.StoredOptions{Prefix: "x.", Count: true})
	if err != nil || len(all) != 1 || all[0].Keys != 4 || all[0].DeadLetters != 2 || all[0].Parked != 1 {
		t.Errorf("%+v, %v", all, err)
	}
	deleted, err := s.DeleteSubscription(t.Context(), "x.one")
	if err != nil || !slices.Contains(deleted, "4 dedup keys") {
		t.Errorf("%v, %v", deleted, err)
	}
	if got := stored(t, s, ""); !slices.Equal(got, []string{"y.two"}) {
		t.Errorf("afterwards: %v", got)
	}
	if deleted, err := s.DeleteSubscription(t.Context(), "x.one"); err != nil || len(deleted) != 0 {
		t.Errorf("again: %v, %v", deleted, err)
	}
}

func counts(all []driver.Forgotten) map[string]int64 {
	found := make(map[string]int64)
	for _, f := range all {
		for _, table := range []string{"outbox_sent", "outbox_held", "outbox", "log", "parked", "dead_letter_changes", "dead_letters", "claims", "starts"} {
			if strings.Contains(f.Place, "tidings_"+table) {
				found[table] += f.Count
				break
			}
		}
	}
	return found
}

func forgotten[TX any](t *testing.T, s Administered[TX], noLog bool) {
	fill(t, s, "x.y", noLog)
	request := driver.ForgetRequest{AggregateID: "ada", Dry: true}
	all, err := s.ForgetAggregate(t.Context(), request)
	if got := counts(all); err != nil || got["dead_letters"] != 1 || got["claims"] != 2 {
		t.Fatalf("dry: %v, %v", all, err)
	}
	if _, err := s.DeadLetters().GetDeadLetter(t.Context(), "x.y", "a.b.c/dead-ada"); err != nil {
		t.Fatalf("a dry run erased something: %v", err)
	}
	request.Dry = false
	if _, err := s.ForgetAggregate(t.Context(), request); err != nil {
		t.Fatal(err)
	}
	if _, err := s.DeadLetters().GetDeadLetter(t.Context(), "x.y", "a.b.c/dead-ada"); !errors.Is(err, driver.ErrNoDeadLetter) {
		t.Errorf("the dead letter: %v", err)
	}
	if _, err := s.DeadLetters().GetDeadLetter(t.Context(), "x.y", "a.b.c/dead-grace"); err != nil {
		t.Errorf("another aggregate's: %v", err)
	}
	if !isHandled(t, s.Claims(), "x.y", once("a.b.c", "ada")) {
		t.Error("the dedup key is gone, and was to stay")
	}
	request.Keys = true
	if all, err = s.ForgetAggregate(t.Context(), request); err != nil || counts(all)["claims"] != 2 {
		t.Fatalf("keys: %v, %v", all, err)
	}
	for key, want := range map[string]bool{once("a.b.c", "ada"): false, repeatable("d.e.f", "1", "ada"): false, repeatable("d.e.f", "1a", "da"): true, once("a.b.c", "grace-ada"): true} {
		if got := isHandled(t, s.Claims(), "x.y", key); got != want {
			t.Errorf("key %q: %v", key, got)
		}
	}
	if all, err := s.ForgetAggregate(t.Context(), request); err != nil || len(all) != 0 {
		t.Errorf("again: %v, %v", all, err)
	}
}

func notForgotten[TX any](t *testing.T, s Administered[TX], noLog bool) {
	add(t, s, row("a.b.c", "ada", 1), row("a.b.c", "grace", 1))
	owner := parkFor(t, s, "x.y", "ada")
	if !noLog {
		begin(t, s.Log(), "x.y", driver.StartAt{Mode: driver.StartBeginning}, "a.b.c")
		number(t, s.Log())
		add(t, s, row("a.b.c", "ada", 2))
	}
	all, err := s.ForgetAggregate(t.Context(), driver.ForgetRequest{AggregateID: "ada"})
	if !errors.Is(err, driver.ErrUnfinished) || len(all) == 0 || !all[0].Unfinished {
		t.Fatalf("%v, %v", all, err)
	}
	if _, found, err := s.Lanes().Head(t.Context(), owner, driver.Lane{Channel: "a.b.c", Key: "ada"}); err != nil || !found {
		t.Fatalf("something was erased: %v, %v", found, err)
	}
	if _, err := s.ForgetAggregate(t.Context(), driver.ForgetRequest{AggregateID: "ada", Unfinished: true}); err != nil {
		t.Fatal(err)
	}
	if _, found, err := s.Lanes().Head(t.Context(), owner, driver.Lane{Channel: "a.b.c", Key: "ada"}); err != nil || found {
		t.Errorf("the parked event: %v, %v", found, err)
	}
	if noLog {
		if got := ids(pending(t, s, everySlot(), 10)); !slices.Equal(got, []string{"grace-1"}) {
			t.Errorf("to be sent: %v", got)
		}
		return
	}
	number(t, s.Log())
	if got := entryIDs(read(t, s.Log(), 10, places(t, s.Log(), "x.y", "a.b.c")...)); !slices.Equal(got, []string{"grace-1"}) {
		t.Errorf("to be read: %v", got)
	}
}

func inspected[TX any](t *testing.T, s Administered[TX], noLog bool) {
	topology := driver.Topology{Subscriptions: []driver.TopologySubscription{{Name: "x.new", Channels: []string{"a.b.c"}}}}
	checks := func() (all []string) {
		t.Helper()
		findings, err := s.Inspect(t.Context(), topology, driver.InspectOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range findings {
			if f.What == "" || f.Why == "" || f.Fix == "" || f.Subject == "" {
				t.Errorf("a finding without words: %+v", f)
			}
			all = append(all, f.Check)
		}
		return all
	}
	if got := checks(); slices.Contains(got, "subscription-unowned") || slices.Contains(got, "subscription-lag") || slices.Contains(got, "sql-schema") {
		t.Errorf("nothing is there: %v", got)
	}
	fill(t, s, "x.old", noLog)
	if got := checks(); !slices.Contains(got, "subscription-unowned") {
		t.Errorf("a former name: %v", got)
	}
	if noLog {
		return
	}
	begin(t, s.Log(), "x.new", driver.StartAt{Mode: driver.StartBeginning}, "a.b.c")
	add(t, s, row("other.channel", "ada", 1))
	number(t, s.Log())
	if got := checks(); slices.Contains(got, "subscription-lag") {
		t.Errorf("another channel: %v", got)
	}
	add(t, s, row("a.b.c", "ada", 1))
	number(t, s.Log())
	if got := checks(); !slices.Contains(got, "subscription-lag") {
		t.Errorf("behind, and nobody runs it: %v", got)
	}
}
