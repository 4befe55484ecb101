package outbox_test

import (
	"testing"
	"time"

	"github.com/tidings-go/tidings/codec"
	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/outbox"
)

// Rows that somebody else inserted are wrapped from their columns.
func TestABareRowIsWrapped(t *testing.T) {
	r := outbox.Row{ID: "i1", Channel: "users.user.created", AggregateID: "u1", Payload: []byte(`{"name":"Ada"}`), CreatedAt: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
	m, err := r.Message()
	if err != nil {
		t.Fatal(err)
	}
	e, err := codec.Decode(&driver.Delivery{Message: m})
	if err != nil || e.ID != "i1" || e.Type != "users.user.created" || e.AggregateID != "u1" || e.Version != 1 || !e.OccurredAt.Equal(r.CreatedAt) || string(e.Payload) != `{"name":"Ada"}` || e.Bare {
		t.Errorf("%+v %v", e, err)
	}
	for _, whole := range []string{`{"eventType":"users.user.created","payload":{"name":"Ada"}}`, `{"specversion":"1.0","type":"x"}`} {
		r.Payload = []byte(whole)
		if m, err := r.Message(); err != nil || string(m.Body) != whole {
			t.Errorf("%s became %s: %v", whole, m.Body, err)
		}
	}
	r.Payload = []byte(`["no object"]`)
	if _, err := r.Message(); err == nil {
		t.Error("a payload that is no object was wrapped")
	}
}

func TestSlots(t *testing.T) {
	// The number is stored: it never changes.
	if got := outbox.SlotOf("a.b", "k"); got != 51 {
		t.Errorf("the slot of a.b k is %d", got)
	}
}
