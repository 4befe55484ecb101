package codec

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"time"

	"github.com/tidings-go/tidings/driver"
)

// Decode reads a delivery in any accepted form: a domain event, a bare payload,
// a CloudEvent in binary or structured mode, and any of these inside an SNS
// notification. docs/wire.md has the whole table of what is accepted, repaired
// and refused.
//
// An error is always a [*FormatError]: reading the same bytes again will fail
// again. Decode keeps nothing but the Body, of which Payload may be a part, and
// changes nothing; it may be called at once.
func Decode(d *driver.Delivery) (Envelope, error) {
	if d == nil {
		return Envelope{}, malformed("no delivery to decode")
	}
	r := reading{delivery: d}
	if err := r.metadata.read(d.Headers); err != nil {
		return Envelope{}, err
	}
	var e Envelope
	if err := r.envelope(&e); err != nil {
		return Envelope{}, err
	}
	return e, nil
}

// reading is one call of Decode.
type reading struct {
	delivery *driver.Delivery
	metadata metadata
	members  members
	// What a notification says of itself: where it lies and since when.
	notificationID string
	notifiedAt     time.Time
}

// envelope decides which form the body has, and reads it into e.
func (r *reading) envelope(e *Envelope) error {
	if failure := r.open(r.delivery.Body); failure != nil {
		return failure
	}
	if !r.isBinaryEvent() && r.isNotification() {
		if err := r.unwrap(); err != nil {
			return err
		}
	}
	m := &r.members
	switch {
	case r.isBinaryEvent():
		return r.binaryEvent(e)
	case isEventContent(r.metadata.contentType):
		return r.structuredEvent(e)
	case m.isText(memberEventType) && m.isText(memberAggregateID) && m.kind(memberPayload) == '{':
		return r.domainEvent(e)
	case m.isText(memberSpecVersion) && m.isText(memberID) && m.isText(memberSource) && m.isText(memberType):
		return r.structuredEvent(e)
	case m.kind(memberEventType) != 0 && m.kind(memberAggregateID) != 0 && m.kind(memberPayload) != 0:
		// Meant as an envelope, and broken. Taken for a bare payload it would
		// reach a handler with every field empty; as a dead letter it is kept.
		return malformed("an envelope needs eventType and aggregateId as strings and payload as an object; here they are %s, %s and %s",
			m.kindName(memberEventType), m.kindName(memberAggregateID), m.kindName(memberPayload))
	}
	return r.barePayload(e)
}

// open finds the members of the body. Its result is nil when it has found them.
func (r *reading) open(body []byte) *FormatError {
	trimmed := trimSpace(body)
	if len(trimmed) == 0 {
		return &FormatError{Reason: "the body is empty"}
	}
	if trimmed[0] != '{' && valid(trimmed) == nil {
		return &FormatError{Reason: "the body is JSON but not an object"}
	}
	if err := r.members.read(body); err != nil {
		return &FormatError{Reason: "the body is not a JSON object", Err: err}
	}
	return nil
}

func (r *reading) isBinaryEvent() bool {
	return r.metadata.attributes.specVersion != "" && !isEventContent(r.metadata.contentType)
}

func (r *reading) domainEvent(e *Envelope) error {
	var err error
	m := &r.members
	eventType := m.text(memberEventType, r.metadata.eventType)
	if eventType == "" {
		return malformed("eventType is empty")
	}
	if e.Type, err = r.agreed("eventType", eventType); err != nil {
		return err
	}
	if e.AggregateID = m.text(memberAggregateID, r.metadata.aggregateID); e.AggregateID == "" {
		e.AggregateID = r.metadata.aggregateID
	}
	if e.AggregateID, err = accepted("aggregateId", e.AggregateID); err != nil {
		return err
	}
	if e.Version, err = m.version(memberVersion, nameVersion, r.metadata.version); err != nil {
		return err
	}
	if e.ReadableFrom, err = m.readableFrom(memberReadableFrom, nameReadableFrom, e.Version); err != nil {
		return err
	}
	e.Payload = m.raw(memberPayload)
	at, known := m.moment(memberOccurredAt)
	if !known {
		at = r.fallbackTime()
	}
	e.OccurredAt = at
	if e.ID, err = r.idOfEvent(e); err != nil {
		return err
	}
	e.CorrelationID = acceptable(m.identifier(memberCorrelationID, ""))
	e.CausationID = acceptable(m.identifier(memberCausationID, ""))
	e.Source = acceptable(m.text(memberSource, ""))
	r.trace(e, m.text(memberTraceparent, r.metadata.traceparent), m.text(memberTracestate, r.metadata.tracestate))
	return nil
}

// idOfEvent is the id of an envelope: its own, the header's, or one that the
// same event has whenever it is published again. Without a time two events can
// be equal in everything, so then only their places tell them apart.
func (r *reading) idOfEvent(e *Envelope) (string, error) {
	m := &r.members
	switch m.kind(memberID) {
	case '{', '[', 't', 'f':
		return "", malformed("id is %s, not a string", m.kindName(memberID))
	}
	if id := m.identifier(memberID, r.metadata.eventID); id != "" {
		return accepted("id", id)
	}
	if r.metadata.eventID != "" || !m.isText(memberOccurredAt) {
		return r.idOfPlace()
	}
	return derivedID(e, m.raw(memberOccurredAt)), nil
}

func (r *reading) barePayload(e *Envelope) error {
	e.Bare = true
	e.Payload = trimSpace(r.members.body)
	var err error
	eventType := r.metadata.eventType
	if eventType == "" {
		eventType = r.delivery.Type
	}
	if eventType == "" {
		eventType = r.delivery.Channel
	}
	if eventType == "" {
		return malformed("a bare payload, and neither a header nor the channel names its type")
	}
	if e.Type, err = accepted("event type", eventType); err != nil {
		return err
	}
	if e.AggregateID, err = accepted("header aggregateId", r.metadata.aggregateID); err != nil {
		return err
	}
	if e.Version, err = versionOf("header eventVersion", r.metadata.version, 1); err != nil {
		return err
	}
	e.ReadableFrom = e.Version
	if e.ID, err = r.idOfPlace(); err != nil {
		return err
	}
	e.OccurredAt = r.fallbackTime()
	r.trace(e, "", "")
	return nil
}

// idOfPlace is the header's id, or where the record lies, or "" when it lies
// nowhere. It never depends on the body.
func (r *reading) idOfPlace() (string, error) {
	if r.metadata.eventID != "" {
		return accepted("header eventId", r.metadata.eventID)
	}
	// SNS may put one notification into a queue twice, as two messages.
	place := r.notificationID
	if place == "" && r.delivery.Ref != nil {
		place = r.delivery.Ref.Position()
	}
	if place == "" {
		return "", nil
	}
	id := "at:" + place
	if textProblem(id) != "" {
		sum := sha256.Sum256([]byte(place))
		id = "at:" + hex.EncodeToString(sum[:])
	}
	return id, nil
}

// derivedID is an id made of what an envelope says. The length before each part
// keeps parts from running into each other.
func derivedID(e *Envelope, occurredAt []byte) string {
	var parts []byte
	for _, part := range [...]string{e.AggregateID, e.Type} {
		parts = binary.AppendUvarint(parts, uint64(len(part)))
		parts = append(parts, part...)
	}
	parts = binary.AppendUvarint(parts, uint64(e.Version))
	for _, part := range [...][]byte{occurredAt, e.Payload} {
		parts = binary.AppendUvarint(parts, uint64(len(part)))
		parts = append(parts, part...)
	}
	sum := sha256.Sum256(parts)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// agreed is the event type of a body, unless a header says another. The name of
// the channel is no header: several types may share one.
func (r *reading) agreed(name, eventType string) (string, error) {
	if header := r.metadata.eventType; header != "" && header != eventType {
		return "", malformed("%s is %s and the header eventType is %s", name, quotable(eventType), quotable(header))
	}
	return accepted(name, eventType)
}

// fallbackTime is when the event occurred as far as anything but the body says.
func (r *reading) fallbackTime() time.Time {
	if at, known := parseMoment([]byte(r.metadata.timestamp)); known {
		return at
	}
	if !r.notifiedAt.IsZero() {
		return r.notifiedAt
	}
	return inMilliseconds(r.delivery.Time)
}

// accepted returns text that is fit to be an id or a type; text that is not
// cannot be repaired, because a shortened id is another event's.
func accepted(name, text string) (string, error) {
	if problem := textProblem(text); problem != "" {
		return "", malformed("%s %s", name, problem)
	}
	return text, nil
}

// acceptable returns text that is fit, and "" for what is not: nothing is lost
// with it but a link for people who read logs.
func acceptable(text string) string {
	if textProblem(text) != "" {
		return ""
	}
	return text
}

// trimSpace removes what JSON calls space around a text.
func trimSpace(text []byte) []byte { return bytes.Trim(text, " \t\r\n") }
