package streams

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/driver/drivertest"
)

// A member is there once, with what it said last, until it leaves or its time is
// over.
func TestAMemberSaysWhatItKnows(t *testing.T) {
	eachServer(t, func(t *testing.T, url, namespace string) {
		d := newDriver(t, url, namespace)
		l := &leases{client: d.client, members: d.membersKey("x.y"), held: make(map[string]int64)}
		join := func(m driver.Member, ttl time.Duration, want ...driver.Member) bool {
			t.Helper()
			alive, err := l.Join(t.Context(), "x.y", m, ttl)
			if err != nil {
				t.Fatal(err)
			}
			slices.SortFunc(alive, func(a, b driver.Member) int { return strings.Compare(a.Holder, b.Holder) })
			return fmt.Sprint(alive) == fmt.Sprint(want)
		}
		a := driver.Member{Holder: "a", Parts: map[string]int{"a.b": 8, "it's \"c\"": 1}}
		less := driver.Member{Holder: "a", Parts: map[string]int{"a.b": 8}}
		other := driver.Member{Holder: "aa", Parts: map[string]int{"a.b": 8}} // not the one whose name it begins with
		if !join(a, time.Minute, a) || !join(other, time.Minute, a, other) || !join(less, time.Minute, less, other) || !join(a, time.Minute, a, other) {
			t.Error("members are not as they said last")
		}
		if alive, err := d.aliveAs(t.Context(), "x.y"); err != nil || alive != 2 {
			t.Errorf("%d are alive: %v", alive, err)
		}
		if err := l.Leave(t.Context(), "x.y", "a"); err != nil {
			t.Fatal(err)
		}
		if !join(other, time.Millisecond, other) {
			t.Error("one that left is counted")
		}
		drivertest.Eventually(t, "the other's time is over", func() bool { return join(a, time.Minute, a) })
	})
}
