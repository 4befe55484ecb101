package sqs

import (
	"bytes"
	"encoding/json"
	"slices"
	"testing"
	"unicode/utf8"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"

	"github.com/tidings-go/tidings/driver"
)

// A body that SQS takes means what it meant before.
func FuzzText(f *testing.F) {
	f.Add([]byte(`{"a":"\ufffe"}`))
	f.Add([]byte("{\"a\":\"\ufffe\uffff😀\"}"))
	f.Add([]byte("\ufffe"))
	f.Add([]byte("\x00"))
	f.Add([]byte("\xff"))
	f.Fuzz(func(t *testing.T, body []byte) {
		sent, err := text(body)
		if err != nil {
			return
		}
		if !utf8.ValidString(sent) {
			t.Fatalf("%q is sent as %q", body, sent)
		}
		for _, r := range sent {
			if r < ' ' && r != '\t' && r != '\n' && r != '\r' || r == '\ufffe' || r == '\uffff' {
				t.Fatalf("%q is sent as %q, with %U in it", body, sent, r)
			}
		}
		if sent == string(body) {
			return
		}
		var before, after any
		if json.Unmarshal(body, &before) != nil || json.Unmarshal([]byte(sent), &after) != nil {
			t.Fatalf("%q is no JSON and was changed to %q", body, sent)
		}
		first, _ := json.Marshal(before)
		second, _ := json.Marshal(after)
		if !bytes.Equal(first, second) {
			t.Fatalf("%q became %q", body, sent)
		}
	})
}

// Whatever lies in a queue has at most one type, the one that its attribute says
// where it has one.
func FuzzParse(f *testing.F) {
	f.Add(`{"eventType":"a.b.c"}`, "", "x", "y")
	f.Add(`{"Type":"Notification","TopicArn":"t","Message":"{\"eventType\":\"a.b.c\"}"}`, "", "x", "y")
	f.Add(`{"Type":"Notification","TopicArn":"t","MessageAttributes":{"eventType":{"Type":"String","Value":"a.b.c"}}}`, "", "x", "y")
	f.Add(`[`, "a.b.c", "\xff", "\x00")
	f.Fuzz(func(t *testing.T, body, eventType, name, value string) {
		m := types.Message{Body: &body, MessageAttributes: map[string]types.MessageAttributeValue{name: {StringValue: &value}}}
		if eventType != "" {
			m.MessageAttributes[driver.HeaderEventType] = types.MessageAttributeValue{StringValue: &eventType}
		}
		in := parse(&m)
		if string(in.body) != body || len(in.headers) != len(m.MessageAttributes) || !slices.IsSortedFunc(in.headers, func(a, b driver.Header) int { return bytes.Compare([]byte(a.Name), []byte(b.Name)) }) {
			t.Fatalf("%+v became %+v", m, in)
		}
		if said := aws.ToString(m.MessageAttributes[driver.HeaderEventType].StringValue); said != "" && in.eventType != said {
			t.Fatalf("the attribute says %q, the driver %q", said, in.eventType)
		}
		if len(in.eventType) > 3*(len(body)+len(value)+len(eventType)) {
			t.Fatalf("a type of %d bytes", len(in.eventType))
		}
	})
}

// A dead letter comes out of its queue as it went in, as far as SQS can carry it.
func FuzzDeadLetter(f *testing.F) {
	f.Add("eventType", "a.b.c", "exhausted", "no", []byte(`{}`), 3, 9)
	f.Add("deadLetter", "{", "undecodable", "\u2028", []byte("{\"a\":\"\ufffe\"}"), 0, 0)
	f.Fuzz(func(t *testing.T, name, value, reason, failure string, body []byte, attempts, room int) {
		letter := driver.DeadLetter{
			Subscription: "billing.x", Channel: "a.b.c", ID: "1", Position: "queue/1", Reason: reason, Err: failure, Attempts: attempts, Body: body,
			Headers: driver.Headers{{Name: name, Value: value}},
		}
		out, err := deadMessage(&letter, 8<<10, 16<<10, min(max(room, 0), maxAttributes-1), true)
		if err != nil {
			return
		}
		back, err := ParseDeadLetter(out.attributes, []byte(out.body))
		if err != nil {
			t.Fatalf("%+v was written as %+v and is not read: %v", letter, out, err)
		}
		if back.ID != "1" || back.Subscription != "billing.x" || back.Attempts != attempts || back.Position != "queue/1" {
			t.Fatalf("wrote %+v\nread %+v", letter, back)
		}
		if utf8.ValidString(reason) && back.Reason != reason {
			t.Fatalf("reason %q became %q", reason, back.Reason)
		}
	})
}

// Whatever stands in the attribute of a dead letter queue: an error or a letter.
func FuzzParseDeadLetter(f *testing.F) {
	f.Add(`{"deadLetterReason":"exhausted","deadLetterAttempts":"3"}`, "eventId", "1", []byte(`{}`))
	f.Add(`{"deadLetterReason":1}`, "", "", []byte(nil))
	f.Add(`[`, "deadLetter", "null", []byte(nil))
	f.Fuzz(func(t *testing.T, said, name, value string, body []byte) {
		letter, err := ParseDeadLetter(driver.Headers{{Name: name, Value: value}, {Name: AttributeDeadLetter, Value: said}}, body)
		if err == nil && !bytes.Equal(letter.Body, body) {
			t.Fatalf("the body %q became %q", body, letter.Body)
		}
	})
}
