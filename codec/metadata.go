package codec

import "github.com/tidings-go/tidings/driver"

// metadata is what the headers of a delivery, or the attributes of a
// notification, say. "" means that nothing was said.
type metadata struct {
	eventType   string
	timestamp   string
	eventID     string
	version     string
	aggregateID string
	traceparent string
	tracestate  string
	contentType string
	attributes  attributes
}

// attributes are the headers of a CloudEvent in binary mode.
type attributes struct {
	specVersion   string
	id            string
	source        string
	eventType     string
	time          string
	subject       string
	version       string
	readableFrom  string
	correlationID string
	causationID   string
	traceparent   string
	tracestate    string
}

// read takes over headers. Of several with one name the last counts, as in
// driver.Headers.Get.
func (m *metadata) read(headers driver.Headers) error {
	if len(headers) > MaxHeaders {
		return malformed("%d headers, at most %d are read", len(headers), MaxHeaders)
	}
	for i := range headers {
		if field := m.field(headers[i].Name); field != nil {
			*field = headers[i].Value
		}
	}
	return nil
}

// field is where the value of a header belongs, or nil when the header means
// nothing here.
func (m *metadata) field(name string) *string {
	switch name {
	case driver.HeaderEventType:
		return &m.eventType
	case driver.HeaderTimestamp:
		return &m.timestamp
	case driver.HeaderEventID:
		return &m.eventID
	case driver.HeaderEventVersion:
		return &m.version
	case driver.HeaderAggregateID:
		return &m.aggregateID
	case driver.HeaderTraceparent:
		return &m.traceparent
	case driver.HeaderTracestate:
		return &m.tracestate
	case headerContentType:
		return &m.contentType
	case attributePrefix + attributeSpecVersion:
		return &m.attributes.specVersion
	case attributePrefix + attributeID:
		return &m.attributes.id
	case attributePrefix + attributeSource:
		return &m.attributes.source
	case attributePrefix + attributeType:
		return &m.attributes.eventType
	case attributePrefix + attributeTime:
		return &m.attributes.time
	case attributePrefix + attributeSubject:
		return &m.attributes.subject
	case attributePrefix + attributeVersion:
		return &m.attributes.version
	case attributePrefix + attributeReadableFrom:
		return &m.attributes.readableFrom
	case attributePrefix + attributeCorrelationID:
		return &m.attributes.correlationID
	case attributePrefix + attributeCausationID:
		return &m.attributes.causationID
	case attributePrefix + nameTraceparent:
		return &m.attributes.traceparent
	case attributePrefix + nameTracestate:
		return &m.attributes.tracestate
	}
	return nil
}
