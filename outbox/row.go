package outbox

import (
	"cmp"
	"encoding/json"
	"fmt"

	"github.com/tidings-go/tidings/codec"
	"github.com/tidings-go/tidings/driver"
)

// RowOf is the row of a message, without what the store gives it.
func RowOf(m driver.Message) Row {
	return Row{Slot: SlotOf(m.Channel, m.Key), ID: m.ID, Channel: m.Channel, AggregateID: m.Key, Type: m.Type, Headers: m.Headers, Payload: m.Body}
}

// Message is what a driver gets for a row. A row without headers whose payload is
// no whole event was inserted by somebody else: it is wrapped from its columns,
// as version 1 of its type (the channel, where it has none), with the time of its
// insertion.
func (r Row) Message() (driver.Message, error) {
	m := driver.Message{Channel: r.Channel, Type: r.Type, Key: r.AggregateID, ID: r.ID, Headers: r.Headers, Body: r.Payload}
	if len(r.Headers) == 0 && !isWhole(r.Payload) {
		body, headers, err := codec.DomainEvents().Encode(&codec.Envelope{
			ID: r.ID, AggregateID: r.AggregateID, Type: cmp.Or(r.Type, r.Channel), Version: 1, OccurredAt: r.CreatedAt, Payload: r.Payload,
		}, driver.Features{Headers: true})
		if err != nil {
			return m, fmt.Errorf("outbox: row %d: it was inserted without headers and cannot be wrapped: %w", r.Sequence, err)
		}
		m.Type, m.Headers, m.Body = cmp.Or(r.Type, r.Channel), headers, body
	}
	m.Size = len(m.Key) + len(m.Body)
	for _, h := range m.Headers {
		m.Size += len(h.Name) + len(h.Value)
	}
	return m, nil
}

// isWhole reports whether a body is an event with its envelope.
func isWhole(body []byte) bool {
	var e struct {
		EventType   *string         `json:"eventType"`
		Payload     json.RawMessage `json:"payload"`
		SpecVersion *string         `json:"specversion"`
	}
	return json.Unmarshal(body, &e) == nil && (e.EventType != nil && e.Payload != nil || e.SpecVersion != nil)
}
