package tidings

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
)

// maxIDSize bounds event and aggregate ids, in bytes, on the wire too.
const maxIDSize = 256

// DomainEvent is an event without its payload's type: what a [Publisher] takes.
// Only [Event] implements it; a type that embeds one forges nothing, because
// the bus reads the embedded event itself.
type DomainEvent interface {
	// ID is unique per event: a UUIDv7 unless [WithID] gave another.
	ID() string
	// AggregateID says what the event happened to.
	AggregateID() string
	// Type is "module.aggregate.action".
	Type() string
	// Version is the version of the contract that the payload is written for.
	Version() int
	// OccurredAt is when it happened, UTC, in milliseconds.
	OccurredAt() time.Time
	// CorrelationID is shared by everything that one event caused, "" at its root.
	CorrelationID() string
	// CausationID is the id of the event whose handler published this one, or "".
	CausationID() string

	record() record
}

// Event is an immutable fact: nothing that a holder does changes what another
// one sees. Make it with [Contract.New]. It is one pointer wide and may be used
// from any goroutine; the zero Event is refused by every Publisher.
type Event[P any] struct {
	typed *typedRecord[P]
}

// record is the untyped face of what an event holds.
type record interface {
	head() *header
	payloadValue() any
	// detach returns a record whose payload shares no memory that can be
	// changed with this one's, or the record itself when there is none.
	detach() record
	// with returns a copy with another header.
	with(h header) record
	// inspect returns the size in memory in bytes and why the payload cannot
	// be published.
	inspect() (size int, err error)
	digest() uint64
	marshal() ([]byte, error)
	event() DomainEvent
}

type header struct {
	id            string
	aggregateID   string
	correlationID string
	causationID   string
	origin        string // the service that published it
	occurredAt    time.Time
	definition    *definition
	err           error // what an option of New found wrong
}

type typedRecord[P any] struct {
	header
	payload P
}

// EventOption changes one event as it is made: [At], [WithID] or [CausedBy].
type EventOption func(*header)

// At sets when the event occurred; the default is now. It is kept in UTC and
// milliseconds.
func At(t time.Time) EventOption {
	return func(h *header) { h.occurredAt = wireTime(t) }
}

// WithID sets the event id, at most 256 bytes, for imports and tests.
func WithID(id string) EventOption {
	return func(h *header) {
		if problem := idProblem(id); problem != "" {
			h.err = errors.Join(h.err, fmt.Errorf("event id %s", problem))
		}
		h.id = id
	}
}

// CausedBy sets correlation and causation ids by hand. Inside a handler they
// come from its context.
func CausedBy(cause DomainEvent) EventOption {
	return func(h *header) {
		if cause == nil || cause.record() == nil {
			h.err = errors.Join(h.err, errors.New("CausedBy needs an event"))
			return
		}
		h.cause(cause.record().head())
	}
}

func (h *header) cause(by *header) {
	h.causationID = by.id
	h.correlationID = by.correlationID
	if h.correlationID == "" {
		h.correlationID = by.id
	}
}

// New makes an event of the contract. Slices and maps of the payload are
// copied. What is wrong with it (an empty aggregate id, NaN, text that is not
// UTF-8) is an error of Publish, not of New.
func (c Contract[P]) New(aggregateID string, payload P, options ...EventOption) Event[P] {
	r := &typedRecord[P]{payload: payload}
	r.definition = c.definition
	r.aggregateID = aggregateID
	if c.definition != nil && c.definition.payload.shares {
		c.definition.payload.clone(reflect.ValueOf(&r.payload).Elem())
	}
	for _, option := range options {
		option(&r.header)
	}
	if r.id == "" && r.err == nil {
		id, err := uuid.NewV7()
		if err != nil {
			r.err = fmt.Errorf("event id: %w", err)
		}
		r.id = id.String()
		if r.occurredAt.IsZero() && err == nil {
			// The id was made from the time just now: one look at the clock does.
			r.occurredAt = time.Unix(id.Time().UnixTime()).Truncate(time.Millisecond).UTC()
		}
	}
	if r.occurredAt.IsZero() {
		r.occurredAt = wireTime(time.Now())
	}
	return Event[P]{typed: r}
}

func wireTime(t time.Time) time.Time { return time.UnixMilli(t.UnixMilli()).UTC() }

// ID implements [DomainEvent].
func (e Event[P]) ID() string {
	if e.typed == nil {
		return ""
	}
	return e.typed.id
}

// AggregateID implements [DomainEvent].
func (e Event[P]) AggregateID() string {
	if e.typed == nil {
		return ""
	}
	return e.typed.aggregateID
}

// Type implements [DomainEvent].
func (e Event[P]) Type() string {
	if e.typed == nil || e.typed.definition == nil {
		return ""
	}
	return e.typed.definition.eventType
}

// Version implements [DomainEvent]. In a handler it is the version that the
// handler was written for; [Delivery] has the one on the wire.
func (e Event[P]) Version() int {
	if e.typed == nil || e.typed.definition == nil {
		return 0
	}
	return e.typed.definition.version
}

// OccurredAt implements [DomainEvent].
func (e Event[P]) OccurredAt() time.Time {
	if e.typed == nil {
		return time.Time{}
	}
	return e.typed.occurredAt
}

// CorrelationID implements [DomainEvent].
func (e Event[P]) CorrelationID() string {
	if e.typed == nil {
		return ""
	}
	return e.typed.correlationID
}

// CausationID implements [DomainEvent].
func (e Event[P]) CausationID() string {
	if e.typed == nil {
		return ""
	}
	return e.typed.causationID
}

// Payload returns the event's data. It copies the struct and nothing behind it:
// each attempt of a handler has its own slices and maps.
func (e Event[P]) Payload() P {
	if e.typed == nil {
		var zero P
		return zero
	}
	return e.typed.payload
}

// String names the event for logs; it has no payload.
func (e Event[P]) String() string {
	return fmt.Sprintf("%s v%d %s of %s", e.Type(), e.Version(), e.ID(), e.AggregateID())
}

func (e Event[P]) record() record {
	if e.typed == nil {
		return nil
	}
	return e.typed
}

func (r *typedRecord[P]) head() *header     { return &r.header }
func (r *typedRecord[P]) payloadValue() any { return r.payload }
func (r *typedRecord[P]) event() DomainEvent {
	return Event[P]{typed: r}
}

func (r *typedRecord[P]) detach() record {
	if !r.definition.payload.shares {
		return r
	}
	clone := &typedRecord[P]{header: r.header, payload: r.payload}
	r.definition.payload.clone(reflect.ValueOf(&clone.payload).Elem())
	return clone
}

func (r *typedRecord[P]) with(h header) record {
	return &typedRecord[P]{header: h, payload: r.payload}
}

func (r *typedRecord[P]) inspect() (int, error) {
	return r.definition.payload.inspect(reflect.ValueOf(&r.payload).Elem())
}

func (r *typedRecord[P]) digest() uint64 {
	return r.definition.payload.digest(reflect.ValueOf(&r.payload).Elem())
}

func (r *typedRecord[P]) marshal() (raw []byte, err error) {
	defer recoverInto(&err) // text types are the application's code
	return json.Marshal(&r.payload)
}

// The wire has four digits for the year.
const (
	firstSecond = -62135596800 // 0001-01-01T00:00:00Z
	lastSecond  = 253402300799 // 9999-12-31T23:59:59Z
)

// invalid says why the event cannot be published, or nil.
func (h *header) invalid() error {
	switch {
	case h.definition == nil:
		return errors.New("the contract is not defined: use tidings.Define")
	case h.err != nil:
		return h.err
	case h.aggregateID == "":
		return errors.New("the aggregate id is empty")
	}
	if problem := idProblem(h.aggregateID); problem != "" {
		return fmt.Errorf("aggregate id %s", problem)
	}
	if second := h.occurredAt.Unix(); second < firstSecond || second > lastSecond {
		return fmt.Errorf("it occurred in the year %d, which the wire cannot say", h.occurredAt.Year())
	}
	return nil
}

func idProblem(id string) string {
	switch {
	case id == "":
		return "is empty"
	case len(id) > maxIDSize:
		return fmt.Sprintf("has %d bytes, at most %d are allowed", len(id), maxIDSize)
	case !utf8.ValidString(id):
		return "is not UTF-8"
	case strings.IndexByte(id, 0) >= 0:
		return "has a NUL byte, which databases refuse"
	}
	return ""
}
