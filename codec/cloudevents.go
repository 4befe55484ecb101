package codec

import (
	"strconv"
	"strings"

	"github.com/tidings-go/tidings/driver"
)

// Context attributes of CloudEvents 1.0.2, section "Context Attributes":
// https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/spec.md. correlationid and
// causationid are those of the documented extension "Correlation", traceparent
// and tracestate of "Distributed Tracing"; version and readablefrom are ours.
const (
	attributeSpecVersion     = "specversion"
	attributeID              = "id"
	attributeSource          = "source"
	attributeType            = "type"
	attributeTime            = "time"
	attributeSubject         = "subject"
	attributeDataContentType = "datacontenttype"
	attributeVersion         = "version"
	attributeReadableFrom    = "readablefrom"
	attributeCorrelationID   = "correlationid"
	attributeCausationID     = "causationid"
	attributeData            = "data"
	attributeDataBase64      = "data_base64"
)

const (
	// headerContentType and attributePrefix are those of the Kafka protocol
	// binding 1.0.2, section 3.2:
	// https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/kafka-protocol-binding.md
	headerContentType = "content-type"
	attributePrefix   = "ce_"

	specVersion          = "1.0"
	contentTypeJSON      = "application/json"
	contentTypeEvent     = "application/cloudevents+json; charset=UTF-8"
	contentTypeAnyEvent  = "application/cloudevents"
	mostBinaryAttributes = 13 // headers of an event with everything set
)

// CloudEvents is the codec named "cloudevents". It writes CloudEvents 1.0 in
// binary mode (attributes in headers ce_id and so on, the body is the payload)
// where any event's attributes fit into the headers, and in structured mode
// (application/cloudevents+json) elsewhere: on a broker without headers or with
// a limit below 13, such as SQS, where part of an event would be lost.
//
// In structured mode the headers are those of [DomainEvents] and content-type,
// so that filters on eventType keep working.
func CloudEvents() Codec { return cloudEvents{} }

type cloudEvents struct{}

func (cloudEvents) Name() string { return "cloudevents" }

func (cloudEvents) Encode(e *Envelope, f driver.Features) ([]byte, driver.Headers, error) {
	if err := e.check(1); err != nil {
		return nil, nil, err
	}
	timestamp := string(appendMoment(make([]byte, 0, wireLength), e.OccurredAt.UTC()))
	if f.Headers && (f.MaxHeaders <= 0 || f.MaxHeaders >= mostBinaryAttributes) {
		return append([]byte(nil), e.Payload...), e.binaryHeaders(timestamp), nil
	}
	body := e.structuredBody(timestamp, !f.Headers)
	if !f.Headers {
		return body, nil, nil
	}
	headers := make(driver.Headers, 0, 8)
	headers = appendHeader(headers, driver.HeaderEventType, e.Type)
	headers = appendHeader(headers, headerContentType, contentTypeEvent)
	headers = appendHeader(headers, driver.HeaderTimestamp, timestamp)
	headers = appendHeader(headers, driver.HeaderEventID, e.ID)
	headers = appendHeader(headers, driver.HeaderEventVersion, strconv.Itoa(e.Version))
	headers = appendHeader(headers, driver.HeaderAggregateID, e.AggregateID)
	headers = appendTrace(headers, e)
	return body, atMost(headers, f.MaxHeaders), nil
}

func (e *Envelope) binaryHeaders(timestamp string) driver.Headers {
	headers := make(driver.Headers, 0, mostBinaryAttributes)
	headers = appendHeader(headers, attributePrefix+attributeSpecVersion, specVersion)
	headers = appendHeader(headers, attributePrefix+attributeID, e.ID)
	headers = appendHeader(headers, attributePrefix+attributeSource, e.eventSource())
	headers = appendHeader(headers, attributePrefix+attributeType, e.Type)
	headers = appendHeader(headers, attributePrefix+attributeTime, timestamp)
	headers = appendHeader(headers, attributePrefix+attributeSubject, e.AggregateID)
	headers = appendHeader(headers, headerContentType, contentTypeJSON)
	headers = appendHeader(headers, attributePrefix+attributeVersion, strconv.Itoa(e.Version))
	if e.readableBefore() {
		headers = appendHeader(headers, attributePrefix+attributeReadableFrom, strconv.Itoa(e.ReadableFrom))
	}
	headers = appendHeader(headers, attributePrefix+attributeCorrelationID, e.CorrelationID)
	headers = appendHeader(headers, attributePrefix+attributeCausationID, e.CausationID)
	// The transport's own trace headers, which every tracing library reads.
	return appendTrace(headers, e)
}

func (e *Envelope) structuredBody(timestamp string, trace bool) []byte {
	body := make([]byte, 0, memberOverhead+e.textSize())
	body = appendText(body, `{"`+attributeSpecVersion+`":`, specVersion)
	body = appendText(body, `,"`+attributeID+`":`, e.ID)
	body = appendText(body, `,"`+attributeSource+`":`, e.eventSource())
	body = appendText(body, `,"`+attributeType+`":`, e.Type)
	body = appendText(body, `,"`+attributeTime+`":`, timestamp)
	body = appendText(body, `,"`+attributeSubject+`":`, e.AggregateID)
	body = appendText(body, `,"`+attributeDataContentType+`":`, contentTypeJSON)
	body = appendNumber(body, `,"`+attributeVersion+`":`, e.Version)
	if e.readableBefore() {
		body = appendNumber(body, `,"`+attributeReadableFrom+`":`, e.ReadableFrom)
	}
	body = appendText(body, `,"`+attributeCorrelationID+`":`, e.CorrelationID)
	body = appendText(body, `,"`+attributeCausationID+`":`, e.CausationID)
	if trace {
		body = appendTraceMembers(body, e)
	}
	body = append(body, `,"`+attributeData+`":`...)
	body = append(body, e.Payload...)
	return append(body, '}')
}

// eventSource is Source as the URI reference that CloudEvents asks for. Without
// one it is the module that owns the type: the attribute is required.
func (e *Envelope) eventSource() string {
	source := e.Source
	if source == "" {
		module, _, _ := strings.Cut(e.Type, ".")
		source = "/" + module
	}
	for i := 0; i < len(source); i++ {
		if !isReference(source[i]) {
			return escapeReference(source)
		}
	}
	return source
}

// isReference reports whether c may stand in a URI reference,
// https://www.rfc-editor.org/rfc/rfc3986#section-2.
func isReference(c byte) bool {
	return isDigit(c) || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || strings.IndexByte("-._~:/?#[]@!$&'()*+,;=%", c) >= 0
}

func escapeReference(source string) string {
	escaped := make([]byte, 0, 3*len(source))
	for i := 0; i < len(source); i++ {
		if c := source[i]; isReference(c) {
			escaped = append(escaped, c)
		} else {
			escaped = append(escaped, '%', hexDigits[c>>4], hexDigits[c&15])
		}
	}
	return string(escaped)
}

// isEventContent reports whether the content type says that the body is a
// structured CloudEvent, or a batch of them, which is then found not to be one.
func isEventContent(contentType string) bool {
	const prefix = contentTypeAnyEvent
	return len(contentType) >= len(prefix) && strings.EqualFold(contentType[:len(prefix)], prefix)
}

// binaryEvent reads a CloudEvent whose attributes are headers and whose body is
// its payload.
func (r *reading) binaryEvent(e *Envelope) error {
	var err error
	a := &r.metadata.attributes
	if a.specVersion != specVersion {
		return malformed("CloudEvents specversion is %s, only %s is known", quotable(a.specVersion), specVersion)
	}
	if a.id == "" {
		return malformed("CloudEvent without an id")
	}
	if e.ID, err = accepted("CloudEvent id", a.id); err != nil {
		return err
	}
	if e.Type, err = r.typeOfEvent(a.eventType); err != nil {
		return err
	}
	if e.AggregateID, err = accepted("CloudEvent subject", a.subject); err != nil {
		return err
	}
	if e.Version, err = versionOf(attributePrefix+attributeVersion, a.version, 1); err != nil {
		return err
	}
	if e.ReadableFrom, err = readableFromOf(attributePrefix+attributeReadableFrom, a.readableFrom, e.Version); err != nil {
		return err
	}
	e.Payload = trimSpace(r.members.body)
	at, known := parseMoment([]byte(a.time))
	if !known {
		at = r.fallbackTime()
	}
	e.OccurredAt = at
	e.CorrelationID, e.CausationID, e.Source = acceptable(a.correlationID), acceptable(a.causationID), acceptable(a.source)
	r.trace(e, a.traceparent, a.tracestate)
	r.subject(e)
	return nil
}

// structuredEvent reads a CloudEvent that is the body.
func (r *reading) structuredEvent(e *Envelope) error {
	var err error
	m := &r.members
	if version := m.text(memberSpecVersion, specVersion); version != specVersion {
		return malformed("CloudEvents specversion is %s, only %s is known", quotable(version), specVersion)
	}
	if e.ID = m.text(memberID, r.metadata.eventID); e.ID == "" {
		return malformed("CloudEvent without an id")
	}
	if e.ID, err = accepted("CloudEvent id", e.ID); err != nil {
		return err
	}
	if e.Type, err = r.typeOfEvent(m.text(memberType, r.metadata.eventType)); err != nil {
		return err
	}
	if e.AggregateID, err = accepted("CloudEvent subject", m.text(memberSubject, r.metadata.aggregateID)); err != nil {
		return err
	}
	if e.Version, err = m.version(memberVersion, attributeVersion, ""); err != nil {
		return err
	}
	if e.ReadableFrom, err = m.readableFrom(memberLowerReadableFrom, attributeReadableFrom, e.Version); err != nil {
		return err
	}
	if m.kind(memberData) != '{' {
		if m.kind(memberDataBase64) != 0 {
			return malformed("CloudEvent with binary data, a payload is a JSON object")
		}
		return malformed("CloudEvent whose data is %s, a payload is a JSON object", m.kindName(memberData))
	}
	e.Payload = m.raw(memberData)
	at, known := m.moment(memberTime)
	if !known {
		at = r.fallbackTime()
	}
	e.OccurredAt = at
	e.CorrelationID = acceptable(m.text(memberLowerCorrelationID, ""))
	e.CausationID = acceptable(m.text(memberLowerCausationID, ""))
	e.Source = acceptable(m.text(memberSource, ""))
	r.trace(e, m.text(memberTraceparent, r.metadata.traceparent), m.text(memberTracestate, r.metadata.tracestate))
	r.subject(e)
	return nil
}

// typeOfEvent is the type of a CloudEvent, which a header may repeat but not
// contradict.
func (r *reading) typeOfEvent(eventType string) (string, error) {
	if eventType == "" {
		return "", malformed("CloudEvent without a type")
	}
	return r.agreed("CloudEvent type", eventType)
}

// subject marks a CloudEvent that does not say what it happened to: its contract
// may read that from the payload.
func (r *reading) subject(e *Envelope) {
	if e.AggregateID == "" {
		e.AggregateID = acceptable(r.metadata.aggregateID)
		e.Bare = true
	}
}
