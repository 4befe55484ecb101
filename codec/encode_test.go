package codec_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tidings-go/tidings/codec"
	"github.com/tidings-go/tidings/driver"
)

// everything is an event with each field set.
func everything() codec.Envelope {
	e := ordinary()
	e.Version, e.ReadableFrom = 3, 2
	e.CorrelationID, e.CausationID, e.Source = "c-1", "c-0", "/shop"
	e.Traceparent, e.Tracestate = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "vendor=1"
	return e
}

func changed(e codec.Envelope, change func(*codec.Envelope)) codec.Envelope {
	change(&e)
	return e
}

var (
	kafka = driver.Features{Headers: true}
	sqs   = driver.Features{Headers: true, MaxHeaders: 10}
	redis = driver.Features{}
)

func TestWrite(t *testing.T) {
	for _, c := range []struct {
		name     string
		proves   string
		codec    codec.Codec
		features driver.Features
		event    codec.Envelope
	}{
		{"domain-event", "An event is the five members of the TypeScript format and an id; what is not set is not there.", codec.DomainEvents(), kafka, ordinary()},
		{"domain-event-everything", "Everything that is set is written; trace context goes into the headers.", codec.DomainEvents(), kafka, everything()},
		{"domain-event-without-headers", "Where a broker has no headers the trace context is in the body.", codec.DomainEvents(), redis, everything()},
		{"domain-event-few-headers", "Headers beyond the limit are dropped from the end, where the least important are.", codec.DomainEvents(), driver.Features{Headers: true, MaxHeaders: 2}, everything()},
		{"domain-event-text", "Text is escaped so that encoding/json and JSON.parse read the same text back.", codec.DomainEvents(), redis,
			changed(ordinary(), func(e *codec.Envelope) { e.AggregateID = "\"\\/<&>\x01\n\t ü😀\u2028\u2029\x7f" })},
		{"domain-event-time", "A time is written in UTC and cut to milliseconds.", codec.DomainEvents(), kafka,
			changed(ordinary(), func(e *codec.Envelope) {
				e.OccurredAt = time.Date(987, 6, 5, 1, 2, 3, 4_999_999, time.FixedZone("", 2*60*60))
			})},
		{"domain-event-same-readable-from", "readableFrom is written only when it is lower than version.", codec.DomainEvents(), kafka,
			changed(ordinary(), func(e *codec.Envelope) { e.Version, e.ReadableFrom = 2, 2 })},
		{"domain-event-broken-trace", "Trace context that no broker can carry is left out.", codec.DomainEvents(), kafka,
			changed(ordinary(), func(e *codec.Envelope) { e.Traceparent, e.Tracestate = "00-\n", "a=b" })},
		{"cloudevents-binary", "In binary mode the attributes are headers of the Kafka protocol binding and the body is the payload.", codec.CloudEvents(), kafka, ordinary()},
		{"cloudevents-binary-everything", "Extensions carry version, readablefrom, correlationid and causationid.", codec.CloudEvents(), kafka, everything()},
		{"cloudevents-structured", "Without headers the body is a structured CloudEvent, trace context included.", codec.CloudEvents(), redis, everything()},
		{"cloudevents-few-headers", "Where not every attribute fits into the headers nothing is left to chance: the mode is structured, and filters find the headers of a domain event.", codec.CloudEvents(), sqs, everything()},
		{"cloudevents-source", "A source that is no URI reference is escaped.", codec.CloudEvents(), redis,
			changed(ordinary(), func(e *codec.Envelope) { e.Source = "shop <ü>" })},
	} {
		t.Run(c.name, func(t *testing.T) {
			body, headers, err := c.codec.Encode(&c.event, c.features)
			if err != nil {
				t.Fatal(err)
			}
			var got bytes.Buffer
			fmt.Fprintf(&got, "proves: %s\n", c.proves)
			for _, h := range headers {
				fmt.Fprintf(&got, "header: %s=%s\n", h.Name, h.Value)
				if h.Value == "" {
					t.Errorf("header %s is empty", h.Name)
				}
			}
			got.WriteString(bodyMark)
			got.Write(body)
			got.WriteByte('\n')
			if !json.Valid(body) {
				t.Error("the body is not JSON")
			}
			path := filepath.Join("testdata/write", c.name+".txt")
			if *update {
				if err := os.WriteFile(path, got.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got.Bytes(), want) {
				t.Errorf("got:\n%swant:\n%s", got.Bytes(), want)
			}
		})
	}
}

func TestWriteRefuses(t *testing.T) {
	for _, c := range []struct {
		name   string
		says   string
		change func(*codec.Envelope)
	}{
		{"no id", "ID is empty", func(e *codec.Envelope) { e.ID = "" }},
		{"no aggregate id", "AggregateID is empty", func(e *codec.Envelope) { e.AggregateID = "" }},
		{"no type", "Type is empty", func(e *codec.Envelope) { e.Type = "" }},
		{"long id", "ID has 257 bytes", func(e *codec.Envelope) { e.ID = strings.Repeat("e", 257) }},
		{"long source", "Source has 257 bytes", func(e *codec.Envelope) { e.Source = strings.Repeat("s", 257) }},
		{"id that is not UTF-8", "ID is not UTF-8", func(e *codec.Envelope) { e.ID = "\xff" }},
		{"NUL", "CausationID has a NUL", func(e *codec.Envelope) { e.CausationID = "a\x00" }},
		{"version 0", "Version is 0", func(e *codec.Envelope) { e.Version = 0 }},
		{"version too large", "it must be from 1 to 2147483647", func(e *codec.Envelope) { e.Version = math.MaxInt32; e.Version++ }},
		{"readable from above version", "ReadableFrom is 2", func(e *codec.Envelope) { e.ReadableFrom = 2 }},
		{"readable from below 0", "ReadableFrom is -1", func(e *codec.Envelope) { e.ReadableFrom = -1 }},
		{"no time", "OccurredAt is not set", func(e *codec.Envelope) { e.OccurredAt = time.Time{} }},
		{"year 10000", "year 10000", func(e *codec.Envelope) { e.OccurredAt = time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC) }},
		{"no payload", "not a JSON object", func(e *codec.Envelope) { e.Payload = nil }},
		{"null payload", "not a JSON object", func(e *codec.Envelope) { e.Payload = []byte("null") }},
		{"array payload", "not a JSON object", func(e *codec.Envelope) { e.Payload = []byte("[]") }},
		{"broken payload", "not a JSON object", func(e *codec.Envelope) { e.Payload = []byte(`{"a":1},"version":9`) }},
		{"payload too deep to be read", "nested deeper", func(e *codec.Envelope) {
			e.Payload = []byte(strings.Repeat(`{"a":`, 128) + "1" + strings.Repeat("}", 128))
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := changed(ordinary(), c.change)
			for _, written := range []codec.Codec{codec.DomainEvents(), codec.CloudEvents()} {
				_, _, err := written.Encode(&e, kafka)
				if err == nil || !strings.HasPrefix(err.Error(), "codec: ") || !strings.Contains(err.Error(), c.says) {
					t.Errorf("%s: got %v, want an error that says %q", written.Name(), err, c.says)
				}
			}
		})
	}
	if _, _, err := codec.DomainEvents().Encode(nil, kafka); err == nil {
		t.Error("nothing was encoded")
	}
}

// Ten attributes is what SQS takes.
func TestHeadersFitTheLimit(t *testing.T) {
	e := everything()
	for _, c := range []codec.Codec{codec.DomainEvents(), codec.CloudEvents()} {
		for limit := 1; limit < 20; limit++ {
			_, headers, err := c.Encode(&e, driver.Features{Headers: true, MaxHeaders: limit})
			if err != nil || len(headers) > limit {
				t.Errorf("%s: %d headers where %d fit, error %v", c.Name(), len(headers), limit, err)
			}
		}
	}
	if _, headers, _ := codec.DomainEvents().Encode(&e, sqs); len(headers) != 7 {
		t.Errorf("SQS has room for all 7 headers, got %d", len(headers))
	}
}

func TestAllocations(t *testing.T) {
	e := ordinary()
	written := codec.DomainEvents()
	check := func(name string, most float64, run func()) {
		if got := testing.AllocsPerRun(200, run); got > most {
			t.Errorf("%s: %v allocations, at most %v are expected", name, got, most)
		}
	}
	check("encode", 3, func() { _, _, _ = written.Encode(&e, kafka) })
	check("encode without headers", 1, func() { _, _, _ = written.Encode(&e, redis) })
	for name, f := range map[string]driver.Features{"decode": kafka, "decode without headers": redis} {
		d := delivered(t, written, e, f)
		check(name, 4, func() { _, _ = codec.Decode(d) })
	}
}
