package codec_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"reflect"
	"testing"
	"time"

	"github.com/tidings-go/tidings/codec"
	"github.com/tidings-go/tidings/driver"
)

// maxErrorText bounds what an error about a hostile record may take in a log.
const maxErrorText = 1024

// checkRead holds what is true of everything that Decode answers, whatever it was
// given: a result that no store and no log has to fear.
func checkRead(t *testing.T, d *driver.Delivery) (codec.Envelope, bool) {
	t.Helper()
	before := bytes.Clone(d.Body)
	e, err := codec.Decode(d)
	if again, errAgain := codec.Decode(d); render(e, err) != render(again, errAgain) {
		t.Fatal("the same delivery decoded differently the second time")
	}
	if !bytes.Equal(before, d.Body) {
		t.Fatal("Decode changed the body")
	}
	if err != nil {
		var format *codec.FormatError
		if !errors.As(err, &format) {
			t.Fatalf("not a FormatError: %v", err)
		}
		if len(err.Error()) > maxErrorText {
			t.Fatalf("an error of %d bytes", len(err.Error()))
		}
		return e, false
	}
	for name, text := range map[string]string{
		"ID": e.ID, "AggregateID": e.AggregateID, "Type": e.Type, "CorrelationID": e.CorrelationID, "CausationID": e.CausationID, "Source": e.Source,
	} {
		if len(text) > 256 || bytes.ContainsRune([]byte(text), 0) {
			t.Fatalf("%s is %q of %d bytes", name, text, len(text))
		}
	}
	if len(e.Traceparent) > 128 || len(e.Tracestate) > 1024 {
		t.Fatalf("a trace context of %d and %d bytes", len(e.Traceparent), len(e.Tracestate))
	}
	var payload map[string]json.RawMessage
	if err := json.Unmarshal(e.Payload, &payload); err != nil || payload == nil {
		t.Fatalf("the payload %q is no object: %v", e.Payload, err)
	}
	if e.Type == "" || e.Version < 1 || e.ReadableFrom < 1 || e.ReadableFrom > e.Version {
		t.Fatalf("incomplete: %+v", e)
	}
	if year := e.OccurredAt.Year(); !e.OccurredAt.IsZero() && (year < 0 || year > 9999 || e.OccurredAt.Location() != time.UTC) {
		t.Fatalf("it occurred at %v", e.OccurredAt)
	}
	return e, true
}

// A CloudEvent in structured mode, and what is almost one: what is read can be
// written as a CloudEvent, in both modes, and is read back the same.
func FuzzStructuredCloudEvent(f *testing.F) {
	full := everything()
	for _, e := range []codec.Envelope{ordinary(), full} {
		body, _, err := codec.CloudEvents().Encode(&e, redis)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(body)
	}
	for _, c := range readCases(f) {
		f.Add(c.delivery.Body)
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		e, ok := checkRead(t, &driver.Delivery{
			Message: driver.Message{Channel: "identity.user.created", Body: body, Headers: driver.Headers{{Name: "content-type", Value: "application/cloudevents+json"}}},
			Ref:     place("here"), Time: time.UnixMilli(1).UTC(),
		})
		if ok {
			checkRewritten(t, e, codec.CloudEvents())
		}
	})
}

// A CloudEvent in binary mode, each attribute a header.
func FuzzBinaryCloudEvent(f *testing.F) {
	f.Add([]byte(`{"a":1}`), "1.0", "id-1", "/shop", "identity.user.created", "2026-01-02T03:04:05Z", "u-1", "2", "1", "application/json")
	f.Add([]byte(`{}`), "1.0", "id-1", "", "a.b.c", "", "", "", "", "")
	f.Add([]byte(`[]`), "0.3", "", "\x00", "", "yesterday", "\xff", "1.0", "9", "text/plain")
	f.Fuzz(func(t *testing.T, body []byte, specVersion, id, source, eventType, at, subject, version, readableFrom, contentType string) {
		e, ok := checkRead(t, &driver.Delivery{
			Message: driver.Message{Channel: "identity.user.created", Body: body, Headers: driver.Headers{
				{Name: "ce_specversion", Value: specVersion}, {Name: "ce_id", Value: id}, {Name: "ce_source", Value: source}, {Name: "ce_type", Value: eventType},
				{Name: "ce_time", Value: at}, {Name: "ce_subject", Value: subject}, {Name: "ce_version", Value: version},
				{Name: "ce_readablefrom", Value: readableFrom}, {Name: "content-type", Value: contentType},
			}},
			Ref: place("here"), Time: time.UnixMilli(1).UTC(),
		})
		if !ok {
			return
		}
		checkRewritten(t, e, codec.CloudEvents())
		if specVersion == "1.0" && contentType == "application/json" && (e.ID != id || e.Type != eventType) {
			t.Fatalf("read id %q and type %q of headers %q and %q", e.ID, e.Type, id, eventType)
		}
	})
}

// checkRewritten writes what was read for every kind of broker, and reads it again.
func checkRewritten(t *testing.T, e codec.Envelope, c codec.Codec) {
	t.Helper()
	if e.ID == "" || e.OccurredAt.IsZero() {
		return // pub/sub without a clock: such an event is not written again
	}
	if e.AggregateID == "" {
		e.AggregateID = "u-1"
	}
	e.Bare = false
	// CloudEvents asks for a source that is a URI reference: others are escaped.
	e.Source = "/shop"
	for name, features := range map[string]driver.Features{"kafka": kafka, "sqs": sqs, "redis": redis} {
		back, err := codec.Decode(delivered(t, c, e, features))
		if err != nil {
			t.Fatalf("%s: %+v was written and is not read: %v", name, e, err)
		}
		if !reflect.DeepEqual(back, e) {
			t.Fatalf("%s: wrote %+v, read %+v", name, e, back)
		}
	}
}

// An SNS notification says nothing that its message would not have said by itself
// with the attributes as headers.
func FuzzNotification(f *testing.F) {
	f.Add(`{"id":"1","aggregateId":"u-1","eventType":"a.b.c","occurredAt":"2026-01-02T03:04:05.000Z","version":1,"payload":{}}`, "a.b.c", "String", "u-1", "2026-01-02T03:04:05.000Z")
	f.Add(`{"name":"Ada"}`, "identity.user.created", "String", "u-1", "")
	f.Add(`[`, "", "Binary", "\x00", "never")
	f.Add(`{"Type":"Notification","MessageId":"1","TopicArn":"t","Message":"{}"}`, "a.b.c", "String", "", "")
	f.Fuzz(func(t *testing.T, message, eventType, kind, aggregate, at string) {
		type attribute struct{ Type, Value string }
		body, err := json.Marshal(map[string]any{
			"Type": "Notification", "MessageId": "m-1", "TopicArn": "arn:aws:sns:::t", "Message": message, "Timestamp": at,
			"MessageAttributes": map[string]attribute{"eventType": {kind, eventType}, "aggregateId": {"String", aggregate}},
		})
		if err != nil {
			t.Fatal(err)
		}
		wrapped, okWrapped := checkRead(t, &driver.Delivery{Message: driver.Message{Channel: "identity.user.created", Body: body}, Ref: place("here")})
		headers := driver.Headers{{Name: "aggregateId", Value: repaired(aggregate)}}
		if kind != "Binary" {
			headers = append(headers, driver.Header{Name: "eventType", Value: repaired(eventType)})
		}
		plain, okPlain := checkRead(t, &driver.Delivery{
			Message: driver.Message{Channel: "identity.user.created", Headers: headers, Body: []byte(repaired(message))}, Ref: place("here"),
		})
		if isNotification([]byte(repaired(message))) {
			return // opened when it stands alone; one inside another is not
		}
		if okWrapped != okPlain {
			t.Fatalf("wrapped it is read: %v, by itself: %v", okWrapped, okPlain)
		}
		if okPlain && (wrapped.Type != plain.Type || wrapped.AggregateID != plain.AggregateID || wrapped.Version != plain.Version || !bytes.Equal(wrapped.Payload, plain.Payload)) {
			t.Fatalf("wrapped %+v\nby itself %+v", wrapped, plain)
		}
	})
}

// repaired is text as it comes out of JSON.
func repaired(text string) string { return string([]rune(text)) }

func isNotification(body []byte) bool {
	var members map[string]json.RawMessage
	return json.Unmarshal(body, &members) == nil && members["TopicArn"] != nil && members["Message"] != nil
}

// Any metadata at all: of headers with one name the last counts, and more than a
// record can have use for are refused.
func FuzzHeaders(f *testing.F) {
	f.Add("eventType", "a.b.c", "eventVersion", "2", "timestamp", "2026-01-02T03:04:05.000Z", 1)
	f.Add("ce_specversion", "1.0", "ce_id", "1", "ce_type", "a.b.c", 3)
	f.Add("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "tracestate", "a=b", "eventId", "\xff", 300)
	f.Fuzz(func(t *testing.T, name1, value1, name2, value2, name3, value3 string, times int) {
		var headers driver.Headers
		for range min(max(times, 0), 400) {
			headers = append(headers, driver.Header{Name: name1, Value: value1})
		}
		headers = append(headers, driver.Header{Name: name2, Value: value2}, driver.Header{Name: name3, Value: value3})
		d := &driver.Delivery{Message: driver.Message{Channel: "a.b.c", Headers: headers, Body: []byte(`{"n":1}`)}, Ref: place("here"), Time: time.UnixMilli(1).UTC()}
		e, ok := checkRead(t, d)
		if ok && len(headers) > 256 {
			t.Fatalf("%d headers are read", len(headers))
		}
		if eventType := headers.Get("eventType"); ok && eventType != "" && headers.Get("ce_specversion") == "" && headers.Get("content-type") == "" && e.Type != eventType {
			t.Fatalf("the last header says %q, the event %q", eventType, e.Type)
		}
	})
}

// Whatever an application puts into an event: it is refused, or encoding/json and
// Decode read it as it was.
func FuzzEncode(f *testing.F) {
	f.Add("id-1", "u-1", "identity.user.created", 3, 2, int64(1_700_000_000_000), "c-1", "c-0", "/shop", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", []byte(`{"a":[1,{"b":null}]}`))
	f.Add("\u2028", "\"\\", "a", 1, 0, int64(-1), "", "", "", "", []byte(` { } `))
	f.Add("\xff", "\x00", "", 0, -1, int64(1)<<62, "\x01", "", "", "\n", []byte(`[]`))
	f.Fuzz(func(t *testing.T, id, aggregate, eventType string, version, readableFrom int, at int64, correlation, causation, source, trace string, payload []byte) {
		e := codec.Envelope{
			ID: id, AggregateID: aggregate, Type: eventType, Version: version, ReadableFrom: readableFrom, OccurredAt: time.UnixMilli(at),
			CorrelationID: correlation, CausationID: causation, Source: source, Traceparent: trace, Payload: payload,
		}
		body, headers, err := codec.DomainEvents().Encode(&e, redis)
		if err != nil {
			if len(err.Error()) > 2*maxErrorText {
				t.Fatalf("an error of %d bytes", len(err.Error()))
			}
			return
		}
		if headers != nil {
			t.Fatalf("headers %v for a broker that has none", headers)
		}
		var read struct {
			ID, AggregateID, EventType, CorrelationID, CausationID, Source string
			Version                                                        int
			OccurredAt                                                     time.Time
			Payload                                                        json.RawMessage
		}
		if err := json.Unmarshal(body, &read); err != nil {
			t.Fatalf("encoding/json does not read %s: %v", body, err)
		}
		if read.ID != id || read.AggregateID != aggregate || read.EventType != eventType || read.Version != version || read.CorrelationID != correlation ||
			read.CausationID != causation || read.Source != source || read.OccurredAt.UnixMilli() != at || !bytes.Equal(bytes.Trim(read.Payload, " \t\r\n"), bytes.Trim(payload, " \t\r\n")) {
			t.Fatalf("encoding/json reads %+v of %+v", read, e)
		}
		if back, ok := checkRead(t, &driver.Delivery{Message: driver.Message{Body: body}}); !ok || back.ID != id || back.AggregateID != aggregate || back.Type != eventType {
			t.Fatalf("wrote %+v, read %+v", e, back)
		}
	})
}
