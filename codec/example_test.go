package codec_test

import (
	"errors"
	"fmt"
	"time"

	"github.com/tidings-go/tidings/codec"
	"github.com/tidings-go/tidings/driver"
)

func ExampleDomainEvents() {
	body, headers, err := codec.DomainEvents().Encode(&codec.Envelope{
		ID:          "01934b6e-7c7a-7b3e-9d52-0a4f5c1f2e3d",
		AggregateID: "u-1",
		Type:        "identity.user.created",
		Version:     1,
		OccurredAt:  time.Date(2026, 1, 2, 15, 4, 5, 0, time.UTC),
		Payload:     []byte(`{"name":"Ada"}`),
	}, driver.Features{Headers: true})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(string(body))
	for _, header := range headers {
		fmt.Println(header.Name, header.Value)
	}
	// Output:
	// {"id":"01934b6e-7c7a-7b3e-9d52-0a4f5c1f2e3d","aggregateId":"u-1","eventType":"identity.user.created","occurredAt":"2026-01-02T15:04:05.000Z","version":1,"payload":{"name":"Ada"}}
	// eventType identity.user.created
	// timestamp 2026-01-02T15:04:05.000Z
	// eventId 01934b6e-7c7a-7b3e-9d52-0a4f5c1f2e3d
	// eventVersion 1
	// aggregateId u-1
}

func ExampleCloudEvents() {
	body, _, err := codec.CloudEvents().Encode(&codec.Envelope{
		ID:          "01934b6e-7c7a-7b3e-9d52-0a4f5c1f2e3d",
		AggregateID: "u-1",
		Type:        "identity.user.created",
		Version:     1,
		OccurredAt:  time.Date(2026, 1, 2, 15, 4, 5, 0, time.UTC),
		Payload:     []byte(`{"name":"Ada"}`),
	}, driver.Features{})
	fmt.Println(string(body), err)
	// Output:
	// {"specversion":"1.0","id":"01934b6e-7c7a-7b3e-9d52-0a4f5c1f2e3d","source":"/identity","type":"identity.user.created","time":"2026-01-02T15:04:05.000Z","subject":"u-1","datacontenttype":"application/json","version":1,"data":{"name":"Ada"}} <nil>
}

// A payload that a TypeScript service published to Kafka has its type and time
// in headers and its id from where it lies.
func ExampleDecode() {
	event, err := codec.Decode(&driver.Delivery{
		Message: driver.Message{
			Headers: driver.Headers{
				{Name: driver.HeaderEventType, Value: "identity.user.created"},
				{Name: driver.HeaderTimestamp, Value: "2026-01-02T15:04:05.678Z"},
			},
			Body: []byte(`{"userId":"u-1","name":"Ada"}`),
		},
		Ref: place("events.identity-user-created/3/1729"),
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(event.Type, event.Version, event.Bare)
	fmt.Println(event.ID)
	fmt.Println(event.OccurredAt)
	// Output:
	// identity.user.created 1 true
	// at:events.identity-user-created/3/1729
	// 2026-01-02 15:04:05.678 +0000 UTC
}

// What can never be read is told apart from everything that may be tried again.
func ExampleFormatError() {
	_, err := codec.Decode(&driver.Delivery{Message: driver.Message{Body: []byte(`["not an object"]`)}})
	if format, is := errors.AsType[*codec.FormatError](err); is {
		fmt.Println(format.Reason)
	}
	// Output: the body is JSON but not an object
}
