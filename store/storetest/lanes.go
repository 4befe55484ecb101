package storetest

import (
	"errors"
	"fmt"
	"reflect"
	"testing"
	"time"

	"github.com/tidings-go/tidings/driver"
)

func parked(key string, n int) driver.Parked {
	id := fmt.Sprintf("id-%d", n)
	return driver.Parked{
		Lane: driver.Lane{Channel: "a.b", Key: key}, Source: "topic/0", ID: id,
		Message: driver.Message{
			Channel: "a.b", Type: "a.b.c", Key: key, ID: id, Headers: driver.Headers{{Name: "eventType", Value: "a.b.c"}}, Body: []byte{'{', 0, 0xff, '}'}, Size: 4,
		},
		Position: fmt.Sprint("topic/0/", n), Time: time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC), Reason: "behind", ParkedAt: time.Date(2026, 1, 2, 3, 4, n, 0, time.UTC),
	}
}

func own(t *testing.T, l driver.Lanes, source string) (driver.Ownership, []driver.Lane) {
	t.Helper()
	owner, lanes, err := l.Own(t.Context(), "x.y", source)
	if err != nil {
		t.Fatalf("Own: %v", err)
	}
	return owner, lanes
}

func park(t *testing.T, l driver.Lanes, owner driver.Ownership, events ...driver.Parked) {
	t.Helper()
	for _, e := range events {
		if err := l.Park(t.Context(), owner, []driver.Parked{e}); err != nil {
			t.Fatalf("Park: %v", err)
		}
	}
}

// Lanes holds a store to [driver.LaneStore]. Two calls of open within one test
// give two values over the same state, with a bound of 100 events a subscription.
func Lanes(t *testing.T, open func(t *testing.T) driver.LaneStore) {
	t.Helper()
	for name, test := range map[string]func(t *testing.T, one, two driver.LaneStore){
		"in order":            lanesInOrder,
		"moves to a new one":  lanesMove,
		"an ownership ends":   ownershipEnds,
		"listed and ordered":  lanesListed,
		"full":                lanesFull,
		"sources are apart":   sourcesApart,
		"attempts are stored": lanesRecord,
	} {
		t.Run(name, func(t *testing.T) { test(t, open(t), open(t)) })
	}
}

func lanesInOrder(t *testing.T, one, _ driver.LaneStore) {
	owner, lanes := own(t, one, "topic/0")
	if len(lanes) > 0 {
		t.Fatalf("an empty store holds %v", lanes)
	}
	lane := driver.Lane{Channel: "a.b", Key: "k1"}
	if _, found, err := one.Head(t.Context(), owner, lane); found || err != nil {
		t.Fatalf("the head of nothing: %v %v", found, err)
	}
	if more, err := one.Remove(t.Context(), owner, lane, "id-1"); more || err != nil {
		t.Errorf("Remove of nothing: %v %v", more, err)
	}
	park(t, one, owner, parked("k1", 1), parked("k2", 9), parked("k1", 2), parked("k1", 1), parked("k1", 3))
	for n := 1; n <= 3; n++ {
		head, found, err := one.Head(t.Context(), owner, lane)
		if err != nil || !found {
			t.Fatalf("head %d: %v %v", n, found, err)
		}
		if want := parked("k1", n); !reflect.DeepEqual(head, want) {
			t.Errorf("head %d\ngot  %+v\nwant %+v", n, head, want)
		}
		if more, err := one.Remove(t.Context(), owner, lane, "another"); err != nil || !more {
			t.Errorf("Remove of what is not the head: more is %v, %v", more, err)
		}
		if more, err := one.Remove(t.Context(), owner, lane, head.ID); err != nil || more != (n < 3) {
			t.Errorf("Remove of event %d: more is %v: %v", n, more, err)
		}
	}
}

func lanesMove(t *testing.T, one, two driver.LaneStore) {
	owner, _ := own(t, one, "topic/0")
	park(t, one, owner, parked("k1", 1), parked("k2", 1), parked("k1", 2))
	next, lanes := own(t, two, "topic/0")
	if len(lanes) != 2 || next.Epoch <= owner.Epoch {
		t.Errorf("the next owner has lanes %v at epoch %d, before %d", lanes, next.Epoch, owner.Epoch)
	}
	if head, found, err := two.Head(t.Context(), next, driver.Lane{Channel: "a.b", Key: "k1"}); err != nil || !found || head.ID != "id-1" {
		t.Errorf("head %v %v %v", head.ID, found, err)
	}
}

func ownershipEnds(t *testing.T, one, two driver.LaneStore) {
	owner, _ := own(t, one, "topic/0")
	park(t, one, owner, parked("k1", 1))
	own(t, two, "topic/0")
	lane := driver.Lane{Channel: "a.b", Key: "k1"}
	_, _, head := one.Head(t.Context(), owner, lane)
	_, remove := one.Remove(t.Context(), owner, lane, "id-1")
	_, orders := one.Orders(t.Context(), owner)
	for what, err := range map[string]error{
		"Park": one.Park(t.Context(), owner, []driver.Parked{parked("k1", 2)}), "Head": head, "Remove": remove, "Orders": orders,
		"Record": one.Record(t.Context(), owner, lane, "id-1", 7, "", "no"),
	} {
		if !errors.Is(err, driver.ErrNotOwned) {
			t.Errorf("%s after another took over: %v", what, err)
		}
	}
	if events, err := two.Events(t.Context(), "x.y", lane, 10); err != nil || len(events) != 1 || events[0].Attempts != 0 {
		t.Errorf("the lane holds %+v: %v", events, err)
	}
}

func lanesRecord(t *testing.T, one, two driver.LaneStore) {
	owner, _ := own(t, one, "topic/0")
	park(t, one, owner, parked("k1", 1), parked("k1", 2))
	lane := driver.Lane{Channel: "a.b", Key: "k1"}
	if err := one.Record(t.Context(), owner, lane, "id-1", 4, "crashed", "still \x00 no"); err != nil {
		t.Fatalf("Record: %v", err)
	}
	next, _ := own(t, two, "topic/0")
	if head, _, err := two.Head(t.Context(), next, lane); err != nil || head.Attempts != 4 || head.Reason != "crashed" || head.Err == "" {
		t.Errorf("head %+v: %v", head, err)
	}
	if err := two.Record(t.Context(), next, lane, "id-1", 5, "", "no"); err != nil {
		t.Fatalf("Record: %v", err)
	}
	if head, _, err := two.Head(t.Context(), next, lane); err != nil || head.Attempts != 5 || head.Reason != "crashed" {
		t.Errorf("without another reason: head %+v: %v", head, err)
	}
}

func lanesListed(t *testing.T, one, two driver.LaneStore) {
	owner, _ := own(t, one, "topic/0")
	for n := range 5 {
		park(t, one, owner, parked(fmt.Sprint("k", n), 1), parked(fmt.Sprint("k", n), 2))
	}
	var all []string
	after := driver.ParkedLane{}
	for {
		page, err := two.List(t.Context(), "x.y", after, 2)
		if err != nil {
			t.Fatalf("List: %v", err)
		}
		if len(page) == 0 {
			break
		}
		for _, l := range page {
			all = append(all, fmt.Sprintf("%s=%d@%s", l.Lane.Key, l.Events, l.Head.ID))
		}
		after = page[len(page)-1]
	}
	if fmt.Sprint(all) != "[k0=2@id-1 k1=2@id-1 k2=2@id-1 k3=2@id-1 k4=2@id-1]" {
		t.Errorf("listed %v", all)
	}
	if none, err := two.List(t.Context(), "another", driver.ParkedLane{}, 2); err != nil || len(none) != 0 {
		t.Errorf("another subscription has %v: %v", none, err)
	}
	lane := driver.Lane{Channel: "a.b", Key: "k1"}
	for _, verb := range []driver.LaneVerb{driver.RetryHead, driver.SkipHead} {
		if holds, err := two.Order(t.Context(), "x.y", driver.LaneOrder{Lane: lane, Verb: verb, Reason: "because"}); !holds || err != nil {
			t.Fatalf("Order: %v %v", holds, err)
		}
	}
	if holds, err := two.Order(t.Context(), "x.y", driver.LaneOrder{Lane: driver.Lane{Channel: "a.b", Key: "none"}, Verb: driver.SkipLane}); holds || err != nil {
		t.Errorf("Order for a lane that holds nothing: %v %v", holds, err)
	}
	orders, err := one.Orders(t.Context(), owner)
	if err != nil || len(orders) != 1 || orders[0] != (driver.LaneOrder{Lane: lane, Verb: driver.SkipHead, Reason: "because"}) {
		t.Errorf("orders %+v: %v", orders, err)
	}
	if again, err := one.Orders(t.Context(), owner); err != nil || len(again) != 0 {
		t.Errorf("given again: %+v %v", again, err)
	}
}

func lanesFull(t *testing.T, one, _ driver.LaneStore) {
	owner, _ := own(t, one, "topic/0")
	for n := range 100 {
		park(t, one, owner, parked(fmt.Sprint("k", n%10), n))
	}
	if err := one.Park(t.Context(), owner, []driver.Parked{parked("k1", 200)}); !errors.Is(err, driver.ErrLanesFull) {
		t.Errorf("Park over the bound: %v", err)
	}
	lane := driver.Lane{Channel: "a.b", Key: "k1"}
	if _, err := one.Remove(t.Context(), owner, lane, "id-1"); err != nil {
		t.Fatalf("Remove: %v", err)
	}
	park(t, one, owner, parked("k1", 200))
}

func sourcesApart(t *testing.T, one, two driver.LaneStore) {
	first, _ := own(t, one, "topic/0")
	second, _ := own(t, two, "topic/1")
	park(t, one, first, parked("k1", 1))
	other := parked("k2", 1)
	other.Source = "topic/1"
	park(t, two, second, other)
	if _, lanes := own(t, one, "topic/1"); len(lanes) != 1 || lanes[0].Key != "k2" {
		t.Errorf("topic/1 has %v", lanes)
	}
	park(t, one, first, parked("k1", 2)) // its own ownership lasts
}
