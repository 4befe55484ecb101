package codec_test

import (
	"testing"
	"time"

	"github.com/tidings-go/tidings/codec"
	"github.com/tidings-go/tidings/driver"
)

// ordinary is the event that speed is measured with: about 250 bytes on the
// wire.
func ordinary() codec.Envelope {
	return codec.Envelope{
		ID: "01934b6e-7c7a-7b3e-9d52-0a4f5c1f2e3d", AggregateID: "7f3c1f0e-5d44-4a52-9c35-3d1f9f2b8a10",
		Type: "identity.user.created", Version: 1, ReadableFrom: 1,
		OccurredAt: time.Date(2026, 1, 2, 15, 4, 5, int(678*time.Millisecond), time.UTC),
		Payload:    []byte(`{"userId":"7f3c1f0e-5d44-4a52-9c35-3d1f9f2b8a10","email":"ada@example.com","name":"Ada"}`),
	}
}

func delivered(t testing.TB, c codec.Codec, e codec.Envelope, f driver.Features) *driver.Delivery {
	t.Helper()
	body, headers, err := c.Encode(&e, f)
	if err != nil {
		t.Fatal(err)
	}
	return &driver.Delivery{Message: driver.Message{Channel: e.Type, Headers: headers, Body: body}, Ref: place("here")}
}

var withHeaders = driver.Features{Headers: true}

// place is a Ref that lies where it says.
type place string

func (p place) Position() string { return string(p) }

func BenchmarkEncode(b *testing.B) {
	for _, c := range []codec.Codec{codec.DomainEvents(), codec.CloudEvents()} {
		for name, f := range map[string]driver.Features{"headers": withHeaders, "body only": {}} {
			b.Run(c.Name()+"/"+name, func(b *testing.B) {
				e := ordinary()
				b.ReportAllocs()
				for b.Loop() {
					if _, _, err := c.Encode(&e, f); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

func BenchmarkDecode(b *testing.B) {
	bare := &driver.Delivery{
		Message: driver.Message{Headers: driver.Headers{{Name: driver.HeaderEventType, Value: "identity.user.created"}}, Body: ordinary().Payload},
		Ref:     place("events.identity-user-created/3/1729"),
	}
	for _, c := range []struct {
		name     string
		delivery *driver.Delivery
	}{
		{"domain-event/headers", delivered(b, codec.DomainEvents(), ordinary(), withHeaders)},
		{"domain-event/body only", delivered(b, codec.DomainEvents(), ordinary(), driver.Features{})},
		{"cloudevents/headers", delivered(b, codec.CloudEvents(), ordinary(), withHeaders)},
		{"cloudevents/body only", delivered(b, codec.CloudEvents(), ordinary(), driver.Features{})},
		{"bare", bare},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(c.delivery.Body)))
			for b.Loop() {
				if _, err := codec.Decode(c.delivery); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
