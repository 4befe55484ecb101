package codec_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand"
	"reflect"
	"strings"
	"testing"
	"testing/quick"
	"time"
	"unicode/utf8"

	"github.com/tidings-go/tidings/codec"
	"github.com/tidings-go/tidings/driver"
)

// anyEvent is an event that Encode accepts.
type anyEvent struct{ codec.Envelope }

// Generate implements quick.Generator.
func (anyEvent) Generate(r *rand.Rand, size int) reflect.Value {
	text := func(least int) string {
		var b strings.Builder
		for n := least + r.Intn(20); b.Len() < n; {
			switch r.Intn(4) {
			case 0:
				b.WriteRune(rune(1 + r.Intn(0x7f)))
			case 1:
				b.WriteString([]string{"\u2028", "\u2029", "\ufffd", "😀", "\\u0000", "\"", "\\", "</script>"}[r.Intn(8)])
			case 2:
				if c := rune(1 + r.Intn(utf8.MaxRune)); utf8.ValidRune(c) {
					b.WriteRune(c)
				}
			default:
				b.WriteByte(byte('a' + r.Intn(26)))
			}
		}
		return b.String()
	}
	fields := map[string]any{}
	for range r.Intn(5) {
		fields[text(0)] = []any{text(0), r.NormFloat64(), nil, true, map[string]any{"eventType": text(0), "payload": map[string]any{}}}[r.Intn(5)]
	}
	payload, err := json.Marshal(fields)
	if err != nil {
		panic(err)
	}
	e := codec.Envelope{
		ID: text(1), AggregateID: text(1), Type: text(1), Version: 1 + r.Intn(9), Payload: payload,
		OccurredAt:    time.UnixMilli(r.Int63n(253402300800000)).UTC(),
		CorrelationID: text(0), CausationID: text(0),
		// A URI reference, because CloudEvents needs one.
		Source: fmt.Sprintf("/shop/%d", r.Intn(99)),
	}
	e.ReadableFrom = 1 + r.Intn(e.Version)
	if r.Intn(2) == 0 {
		e.Traceparent = fmt.Sprintf("00-%032x-%016x-01", r.Uint64(), r.Uint64())
		e.Tracestate = []string{"", "vendor=1"}[r.Intn(2)]
	}
	return reflect.ValueOf(anyEvent{e})
}

func TestRoundTrip(t *testing.T) {
	for _, c := range []codec.Codec{codec.DomainEvents(), codec.CloudEvents()} {
		for name, f := range map[string]driver.Features{"kafka": kafka, "sqs": sqs, "redis": redis} {
			t.Run(c.Name()+"/"+name, func(t *testing.T) {
				if err := quick.CheckEqual(
					func(e anyEvent) codec.Envelope { return e.Envelope },
					func(e anyEvent) codec.Envelope {
						back, err := codec.Decode(delivered(t, c, e.Envelope, f))
						if err != nil {
							t.Fatalf("%+v: %v", e, err)
						}
						return back
					}, &quick.Config{MaxCount: 500}); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// What encoding/json reads from a written event is what was written.
func TestEncodingJSONReadsTheEnvelope(t *testing.T) {
	if err := quick.Check(func(e anyEvent) bool {
		body, _, err := codec.DomainEvents().Encode(&e.Envelope, redis)
		if err != nil {
			t.Fatal(err)
		}
		var read struct {
			ID, AggregateID, EventType, CorrelationID, CausationID, Source, Traceparent, Tracestate string
			OccurredAt                                                                              time.Time
			Version, ReadableFrom                                                                   int
			Payload                                                                                 json.RawMessage
		}
		if err := json.Unmarshal(body, &read); err != nil {
			t.Fatalf("%s: %v", body, err)
		}
		if read.ReadableFrom == 0 {
			read.ReadableFrom = read.Version
		}
		got := codec.Envelope{
			ID: read.ID, AggregateID: read.AggregateID, Type: read.EventType, Version: read.Version, ReadableFrom: read.ReadableFrom,
			OccurredAt: read.OccurredAt, CorrelationID: read.CorrelationID, CausationID: read.CausationID, Source: read.Source,
			Traceparent: read.Traceparent, Tracestate: read.Tracestate, Payload: read.Payload,
		}
		return reflect.DeepEqual(got, e.Envelope)
	}, nil); err != nil {
		t.Error(err)
	}
}

func FuzzDecode(f *testing.F) {
	for _, c := range readCases(f) {
		var header, value string
		if len(c.delivery.Headers) > 0 {
			last := c.delivery.Headers[len(c.delivery.Headers)-1]
			header, value = last.Name, last.Value
		}
		f.Add(c.delivery.Body, c.delivery.Headers.Get(driver.HeaderEventType), header, value)
	}
	f.Fuzz(func(t *testing.T, body []byte, eventType, header, value string) {
		before := bytes.Clone(body)
		d := &driver.Delivery{
			Message: driver.Message{Channel: "identity.user.created", Body: body, Headers: driver.Headers{
				{Name: driver.HeaderEventType, Value: eventType}, {Name: "ce_id", Value: "1"}, {Name: "ce_type", Value: "a.b.c"}, {Name: header, Value: value},
			}},
			Ref: place("here"), Time: time.UnixMilli(1).UTC(),
		}
		e, err := codec.Decode(d)
		if again, errAgain := codec.Decode(d); render(e, err) != render(again, errAgain) {
			t.Fatal("the same delivery decoded differently the second time")
		}
		if !bytes.Equal(before, body) {
			t.Fatal("Decode changed the body")
		}
		if err != nil {
			var format *codec.FormatError
			if !errors.As(err, &format) {
				t.Fatalf("not a FormatError: %v", err)
			}
			return
		}
		var payload map[string]json.RawMessage
		if err := json.Unmarshal(e.Payload, &payload); err != nil || payload == nil {
			t.Fatalf("the payload %q is no object: %v", e.Payload, err)
		}
		if e.ID == "" || e.Type == "" || e.Version < 1 || e.ReadableFrom < 1 || e.ReadableFrom > e.Version || e.OccurredAt.IsZero() {
			t.Fatalf("incomplete: %+v", e)
		}
		if e.AggregateID == "" {
			e.AggregateID = "u-1"
		}
		e.Bare = false
		back, err := codec.Decode(delivered(t, codec.DomainEvents(), e, kafka))
		if err != nil {
			t.Fatalf("%+v was written and is not read: %v", e, err)
		}
		if !reflect.DeepEqual(back, e) {
			t.Fatalf("wrote %+v, read %+v", e, back)
		}
	})
}
