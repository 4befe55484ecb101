package driver

import "time"

// Names of the metadata that travels beside a body: Kafka headers, SQS message
// attributes, fields of a Redis stream entry. HeaderEventType and
// HeaderTimestamp are the ones that the TypeScript publishers of the same
// format write; an absent value is an absent header, never an empty one.
const (
	HeaderEventType    = "eventType"
	HeaderTimestamp    = "timestamp" // when the event occurred, 2006-01-02T15:04:05.000Z
	HeaderEventID      = "eventId"
	HeaderEventVersion = "eventVersion"
	HeaderAggregateID  = "aggregateId"
	HeaderTraceparent  = "traceparent" // W3C Trace Context, https://www.w3.org/TR/trace-context/
	HeaderTracestate   = "tracestate"
)

// Header is one piece of metadata of a [Message].
type Header struct {
	Name  string
	Value string
}

// Headers is the metadata of a [Message], in the order in which it was written.
// Names are compared exactly, as Kafka does.
type Headers []Header

// Get returns the last value with that name, or "". The last one wins, as it
// does where a producer interceptor appends its own.
func (h Headers) Get(name string) string {
	for i := len(h) - 1; i >= 0; i-- {
		if h[i].Name == name {
			return h[i].Value
		}
	}
	return ""
}

// Set replaces the first header with that name and appends one if there is
// none. An empty value removes the header.
func (h *Headers) Set(name, value string) {
	for i := range *h {
		if (*h)[i].Name != name {
			continue
		}
		if value == "" {
			*h = append((*h)[:i], (*h)[i+1:]...)
		} else {
			(*h)[i].Value = value
		}
		return
	}
	if value != "" {
		*h = append(*h, Header{Name: name, Value: value})
	}
}

// Message is one event as a driver stores it. A driver treats Headers, Body and
// Value as read-only and may keep them until the call that received the message
// has returned, unless that call's comment says otherwise.
type Message struct {
	// Channel is what is ordered together, for example
	// "identity.user.created". A driver derives the name of its topic, queue or
	// stream from it.
	Channel string
	// Type is the event type. On a delivery it is set only where the broker
	// itself tells it outside body and headers (the channel of Redis pub/sub).
	Type string
	// Key is the aggregate id: messages of one channel and key keep their
	// order. On a delivery it is what the broker stored as key; the engine does
	// not read it.
	Key string
	// ID is the event id, an opaque string of at most 256 bytes.
	ID string
	// Headers is the metadata beside the body.
	Headers Headers
	// Body is the encoded event. It is nil for a driver with
	// [Features.Values].
	Body []byte
	// Value is the event itself. Only a driver with [Features.Values] gets and
	// returns it, untouched.
	Value any
	// Size is the number of bytes that count against a bound in memory. A
	// driver with [Features.Values] uses it in place of len(Body).
	Size int
}

// Source is where deliveries come from as far as ownership goes: a Kafka
// partition, a shard of a Redis stream, a queue. The zero Source belongs to a
// driver without ownership (memory, SQS).
type Source struct {
	// Name is stable over restarts, for example "events.orders-order-placed/3".
	Name string
	// Epoch grows each time this process is given the source, so that work
	// begun under an earlier ownership is told from work of this one.
	Epoch int64
}

// Ref is a driver's own handle for one delivery. The engine passes it back in a
// [Settlement] and asks it for its place when an event needs one; it does
// nothing else with it.
type Ref interface {
	// Position says where the message lies, unique on that broker and the same
	// at every delivery: "topic/partition/offset", an SQS message id, a stream
	// entry id. It is "" where messages do not lie anywhere (pub/sub). A
	// message without an id of its own gets one from it.
	Position() string
}

// Delivery is one message handed to the engine, with what the broker knows of it.
type Delivery struct {
	Message
	// Ref identifies this delivery to the driver. It is never nil.
	Ref Ref
	// Source is where it came from, with the epoch of the current ownership.
	Source Source
	// Time is when the broker stored it, or the zero time where it does not say.
	Time time.Time
	// Attempt is how often the broker has delivered it, counting this one, or 0
	// where it does not count ([Features.RedeliveryCount]).
	Attempt int
	// GiveUp, when it is not "", asks the engine to make a dead letter of the
	// message with this reason, unseen by any handler: the driver knows that
	// nobody will handle it, for example "unhandled" (no subscription of a
	// shared queue has its type). It is one word, as [DeadLetter.Reason].
	GiveUp string
}

// Outcome is how a delivery ended for its driver.
type Outcome int

const (
	// Finished means handled, dead-lettered, parked in a store or deliberately
	// ignored: the broker's position may pass it, and it is not delivered to
	// this subscription again.
	Finished Outcome = iota + 1
	// Released means given back unfinished: it comes again, to this consumer or
	// to another, not before Settlement.After where the broker can delay.
	Released
)

// Settlement tells a driver how one delivery ended.
type Settlement struct {
	Ref     Ref
	Source  Source
	Outcome Outcome
	// After is the least time until a Released message is delivered again.
	After time.Duration
}
