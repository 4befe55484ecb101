package driver

import (
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// Names of the metadata that a dead letter on a broker has beside that of its
// event.
const (
	HeaderDeadReason       = "deadLetterReason" // see DeadLetter.Reason
	HeaderDeadError        = "deadLetterError"  // the last failure, shortened
	HeaderDeadStack        = "deadLetterStack"  // of a panic, shortened
	HeaderDeadAttempts     = "deadLetterAttempts"
	HeaderDeadSubscription = "deadLetterSubscription"
	HeaderDeadPosition     = "deadLetterPosition" // where the event lay
	HeaderDeadTime         = "deadLetterTime"     // when it was given up, RFC 3339 with milliseconds
	HeaderDeadChannel      = "deadLetterChannel"
	HeaderDeadEventID      = "deadLetterEventId"
)

// deadTime is the form of HeaderDeadTime.
const deadTime = "2006-01-02T15:04:05.000Z"

// DeadLetterHeaders is the metadata of a dead letter on a broker: the headers of
// the event, then what went wrong. Error and stack are shortened to a number of
// bytes, at a character; 0 leaves them out. Headers of these names that the event
// came with are left out: an event does not say why it was given up.
func DeadLetterHeaders(letter *DeadLetter, errorBytes, stackBytes int) Headers {
	headers := make(Headers, 0, len(letter.Headers)+9)
	for _, h := range letter.Headers {
		if !isDeadName(h.Name) {
			headers = append(headers, h)
		}
	}
	add := func(name, value string) {
		if value != "" {
			headers = append(headers, Header{Name: name, Value: value})
		}
	}
	add(HeaderDeadReason, letter.Reason)
	add(HeaderDeadError, cut(letter.Err, errorBytes))
	add(HeaderDeadStack, cut(letter.Stack, stackBytes))
	add(HeaderDeadAttempts, strconv.Itoa(letter.Attempts))
	add(HeaderDeadSubscription, letter.Subscription)
	add(HeaderDeadPosition, letter.Position)
	add(HeaderDeadChannel, letter.Channel)
	add(HeaderDeadEventID, letter.ID)
	if !letter.FailedAt.IsZero() {
		add(HeaderDeadTime, letter.FailedAt.UTC().Format(deadTime))
	}
	return headers
}

// isDeadName reports whether a header is one of those that a dead letter adds.
func isDeadName(name string) bool {
	switch name {
	case HeaderDeadReason, HeaderDeadError, HeaderDeadStack, HeaderDeadAttempts, HeaderDeadSubscription, HeaderDeadPosition, HeaderDeadTime, HeaderDeadChannel, HeaderDeadEventID:
		return true
	}
	return false
}

// ParseDeadLetter reads what [DeadLetterHeaders] wrote. What is no number or time
// is an error; the letter then has everything else.
func ParseDeadLetter(headers Headers, body []byte) (letter DeadLetter, err error) {
	letter.Body = body
	for _, h := range headers {
		var failure error
		switch h.Name {
		case HeaderDeadReason:
			letter.Reason = h.Value
		case HeaderDeadError:
			letter.Err = h.Value
		case HeaderDeadStack:
			letter.Stack = h.Value
		case HeaderDeadAttempts:
			letter.Attempts, failure = strconv.Atoi(h.Value)
		case HeaderDeadSubscription:
			letter.Subscription = h.Value
		case HeaderDeadPosition:
			letter.Position = h.Value
		case HeaderDeadChannel:
			letter.Channel = h.Value
		case HeaderDeadEventID:
			letter.ID = h.Value
		case HeaderDeadTime:
			letter.FailedAt, failure = time.Parse(time.RFC3339, h.Value)
		default:
			letter.Headers = append(letter.Headers, h)
		}
		if failure != nil && err == nil {
			err = fmt.Errorf("tidings: dead letter: header %s is %q", h.Name, cut(h.Value, 40))
		}
	}
	letter.Type = letter.Headers.Get(HeaderEventType)
	letter.AggregateID = letter.Headers.Get(HeaderAggregateID)
	return letter, err
}

// cut shortens a text to a number of bytes, on a character, and makes it valid
// UTF-8.
func cut(text string, most int) string {
	text = strings.ToValidUTF8(text, "\uFFFD")
	if len(text) <= most {
		return text
	}
	const mark = " …"
	most -= len(mark)
	if most <= 0 {
		return ""
	}
	for most > 0 && !utf8.RuneStart(text[most]) {
		most--
	}
	return text[:most] + mark
}
