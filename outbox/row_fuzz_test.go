package outbox_test

import (
	"bytes"
	"encoding/json"
	"testing"
	"time"

	"github.com/tidings-go/tidings/codec"
	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/outbox"
)

type place string

func (p place) Position() string { return string(p) }

// A row that anybody inserted: it is refused, which its table keeps, or it is a
// message that is read as what its columns say.
func FuzzRowMessage(f *testing.F) {
	f.Add("1", "users.user.created", "u-1", "users.user.created", []byte(`{"name":"Ada"}`), int64(1_700_000_000_000))
	f.Add("1", "users", "u-1", "", []byte(`{"id":"2","aggregateId":"u-2","eventType":"users.user.created","payload":{}}`), int64(1))
	f.Add("", "", "\x00", "x", []byte(`[`), int64(-1)<<60)
	f.Add("1", "a", "b", "c", []byte(`{"specversion":"1.0"}`), int64(0))
	f.Add("1", "a", "b", "c", []byte(`{"eventType":"x","payload":null}`), int64(0))
	f.Fuzz(func(t *testing.T, id, channel, aggregate, eventType string, payload []byte, created int64) {
		row := outbox.Row{ID: id, Channel: channel, AggregateID: aggregate, Type: eventType, Payload: bytes.Clone(payload), CreatedAt: time.UnixMilli(created)}
		m, err := row.Message()
		if !bytes.Equal(row.Payload, payload) {
			t.Fatal("Message changed the payload")
		}
		if err != nil {
			return
		}
		if m.Channel != channel || m.Key != aggregate || m.ID != id || m.Size < len(m.Key)+len(m.Body) {
			t.Fatalf("message %+v", m)
		}
		if len(m.Headers) == 0 {
			if !bytes.Equal(m.Body, payload) {
				t.Fatalf("a whole event was changed to %s", m.Body)
			}
			return // whoever inserted it answers for what is in it; Decode judges it on arrival
		}
		e, err := codec.Decode(&driver.Delivery{Message: m, Ref: place("here")})
		if err != nil {
			t.Fatalf("%+v is not read: %v", m, err)
		}
		wanted := eventType
		if wanted == "" {
			wanted = channel
		}
		var inside, given bytes.Buffer
		if json.Compact(&inside, e.Payload) != nil || json.Compact(&given, payload) != nil || inside.String() != given.String() {
			t.Fatalf("payload %s became %s", payload, e.Payload)
		}
		if e.ID != id || e.AggregateID != aggregate || e.Type != wanted || e.Version != 1 || e.OccurredAt.UnixMilli() != created {
			t.Fatalf("row %+v became %+v", row, e)
		}
	})
}
