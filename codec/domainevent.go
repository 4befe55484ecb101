package codec

import (
	"strconv"

	"github.com/tidings-go/tidings/driver"
)

// Members of the domain event, in the order in which they are written.
const (
	nameID            = "id"
	nameAggregateID   = "aggregateId"
	nameEventType     = "eventType"
	nameOccurredAt    = "occurredAt"
	nameVersion       = "version"
	nameReadableFrom  = "readableFrom"
	nameCorrelationID = "correlationId"
	nameCausationID   = "causationId"
	nameSource        = "source"
	nameTraceparent   = "traceparent"
	nameTracestate    = "tracestate"
	namePayload       = "payload"
)

// memberOverhead is room for the names and punctuation around the text of an
// event.
const memberOverhead = 192

// DomainEvents is the default codec, named "domain-event": one JSON object with
// the members of the TypeScript format's DomainEvent plus an id. A service
// written from that format reads it as it is. docs/wire.md is its reference.
func DomainEvents() Codec { return domainEvents{} }

type domainEvents struct{}

func (domainEvents) Name() string { return "domain-event" }

func (domainEvents) Encode(e *Envelope, f driver.Features) ([]byte, driver.Headers, error) {
	if err := e.check(1); err != nil {
		return nil, nil, err
	}
	at := e.OccurredAt.UTC()
	body := make([]byte, 0, memberOverhead+e.textSize())
	body = appendText(body, `{"`+nameID+`":`, e.ID)
	body = appendText(body, `,"`+nameAggregateID+`":`, e.AggregateID)
	body = appendText(body, `,"`+nameEventType+`":`, e.Type)
	body = append(body, `,"`+nameOccurredAt+`":"`...)
	timestamp := len(body)
	body = appendMoment(body, at)
	body = appendNumber(body, `","`+nameVersion+`":`, e.Version)
	if e.readableBefore() {
		body = appendNumber(body, `,"`+nameReadableFrom+`":`, e.ReadableFrom)
	}
	body = appendText(body, `,"`+nameCorrelationID+`":`, e.CorrelationID)
	body = appendText(body, `,"`+nameCausationID+`":`, e.CausationID)
	body = appendText(body, `,"`+nameSource+`":`, e.Source)
	if !f.Headers {
		body = appendTraceMembers(body, e)
	}
	body = append(body, `,"`+namePayload+`":`...)
	body = append(body, e.Payload...)
	body = append(body, '}')
	if !f.Headers {
		return body, nil, nil
	}
	headers := make(driver.Headers, 0, 7)
	headers = appendHeader(headers, driver.HeaderEventType, e.Type)
	headers = appendHeader(headers, driver.HeaderTimestamp, string(body[timestamp:timestamp+wireLength]))
	headers = appendHeader(headers, driver.HeaderEventID, e.ID)
	headers = appendHeader(headers, driver.HeaderEventVersion, strconv.Itoa(e.Version))
	headers = appendHeader(headers, driver.HeaderAggregateID, e.AggregateID)
	headers = appendTrace(headers, e)
	return body, atMost(headers, f.MaxHeaders), nil
}

// atMost drops headers from the end of the list, where the least important are.
func atMost(headers driver.Headers, limit int) driver.Headers {
	if limit > 0 && len(headers) > limit {
		return headers[:limit]
	}
	return headers
}

func appendHeader(to driver.Headers, name, value string) driver.Headers {
	if value == "" {
		return to
	}
	return append(to, driver.Header{Name: name, Value: value})
}

// A key is a member's name as it is written, with its colon and with the comma
// or the bracket before it, so that one append writes it.

// appendText appends a member with text, unless it is empty.
func appendText(to []byte, key, value string) []byte {
	if value == "" {
		return to
	}
	return appendQuoted(append(to, key...), value)
}

func appendNumber(to []byte, key string, value int) []byte {
	return strconv.AppendInt(append(to, key...), int64(value), 10)
}
