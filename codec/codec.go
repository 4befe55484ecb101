package codec

import (
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/tidings-go/tidings/driver"
)

const (
	// maxTextSize bounds ids, the event type and the source, in bytes: stores
	// index some of them.
	maxTextSize = 256
	// maxVersion is the largest version that an INTEGER column holds.
	maxVersion = 1<<31 - 1
)

// MaxHeaders is how many headers a record may have before [Decode] refuses it.
// Brokers allow more than any publisher has use for.
const MaxHeaders = 256

// Envelope is an event as the wire has it: everything but the Go type of its
// payload. It is plain data; whoever holds one may change it.
type Envelope struct {
	// ID is the event id, at most 256 bytes. After Decode it is empty only for a
	// record that has no id and lies nowhere (pub/sub): such a record cannot be
	// recognised when it comes again.
	ID string
	// AggregateID says what the event happened to, at most 256 bytes. After
	// Decode it may be empty.
	AggregateID string
	// Type is "module.aggregate.action", at most 256 bytes.
	Type string
	// Version of the contract that the payload was written for, 1 or more.
	Version int
	// ReadableFrom is the oldest version whose readers understand the payload.
	// After Decode it is from 1 to Version; Encode takes 0 for Version.
	ReadableFrom int
	// OccurredAt is in UTC and milliseconds. After Decode it is the zero time
	// when neither the record nor its broker says when.
	OccurredAt time.Time
	// CorrelationID and CausationID are ids of other events, at most 256 bytes,
	// or "".
	CorrelationID, CausationID string
	// Source says who published the event, at most 256 bytes, or "".
	Source string
	// Traceparent and Tracestate are the context of W3C Trace Context, or "".
	Traceparent, Tracestate string
	// Payload is one JSON object. After Decode it may be part of the delivery's
	// Body and must then be treated as read-only, as that is.
	Payload []byte
	// Bare says that the body was the payload alone, or a CloudEvent without a
	// subject. AggregateID is then what the header aggregateId said, most often
	// nothing; the contract may know how to read it from the payload. Encode
	// does not look at it.
	Bare bool
}

// Codec writes events for a broker. Both codecs of this package are stateless:
// all methods may be called at once.
type Codec interface {
	// Name is the word for the codec in settings and logs.
	Name() string

	// Encode returns the body and the headers of an event for a broker with
	// those features. The headers are nil where f.Headers is false, are never
	// more than f.MaxHeaders, and none of them is empty. Both results belong to
	// the caller; e is not kept and not changed. The size of the result is not
	// compared with f.MaxSize.
	//
	// The error says what is wrong with the envelope: no id, aggregate id, type
	// or time, text over 256 bytes, not UTF-8 or with a NUL in it, a version out
	// of range, or a payload that is not a JSON object.
	Encode(e *Envelope, f driver.Features) (body []byte, headers driver.Headers, err error)
}

// FormatError says why a delivery can never be read. It is what [Decode]
// returns for whatever belongs to the dead letters. It quotes names and short
// ids of the event, nothing of the payload.
type FormatError struct {
	// Reason is what is wrong, in words.
	Reason string
	// Err is the cause, or nil.
	Err error
}

// Error returns the reason and its cause.
func (e *FormatError) Error() string {
	if e.Err != nil {
		return "codec: " + e.Reason + ": " + e.Err.Error()
	}
	return "codec: " + e.Reason
}

// Unwrap returns the cause.
func (e *FormatError) Unwrap() error { return e.Err }

func malformed(format string, arguments ...any) error {
	return &FormatError{Reason: fmt.Sprintf(format, arguments...)}
}

// textProblem says why s cannot be an id or a type, or "". A NUL is JSON and
// UTF-8, but PostgreSQL cannot store it, so a record with one would never leave
// its lane.
func textProblem(s string) string {
	switch {
	case len(s) > maxTextSize:
		return fmt.Sprintf("has %d bytes, at most %d are allowed", len(s), maxTextSize)
	case firstEscape(s, 0) == len(s): // almost always: one look tells all
		return ""
	case strings.IndexByte(s, 0) >= 0:
		return "has a NUL in it"
	case !utf8.ValidString(s):
		return "is not UTF-8"
	}
	return ""
}

// quotable is s, shortened for an error.
func quotable(s string) string {
	const most = 80
	if len(s) > most {
		return fmt.Sprintf("%q…", s[:most])
	}
	return fmt.Sprintf("%q", s)
}

// check says why an envelope cannot be written. depth is how many levels of
// JSON will surround the payload.
func (e *Envelope) check(depth int) error {
	if e == nil {
		return errors.New("codec: no envelope to encode")
	}
	if err := errors.Join(
		checkText("ID", e.ID, true), checkText("AggregateID", e.AggregateID, true), checkText("Type", e.Type, true),
		checkText("CorrelationID", e.CorrelationID, false), checkText("CausationID", e.CausationID, false),
		checkText("Source", e.Source, false)); err != nil {
		return err
	}
	if e.Version < 1 || e.Version > maxVersion {
		return fmt.Errorf("codec: Version is %d, it must be from 1 to %d", e.Version, maxVersion)
	}
	if e.ReadableFrom < 0 || e.ReadableFrom > e.Version {
		return fmt.Errorf("codec: ReadableFrom is %d, it must be from 1 to Version, which is %d", e.ReadableFrom, e.Version)
	}
	if e.OccurredAt.IsZero() {
		return errors.New("codec: OccurredAt is not set")
	}
	if year := e.OccurredAt.UTC().Year(); year < 0 || year > 9999 {
		return fmt.Errorf("codec: OccurredAt is in the year %d, the format has four digits", year)
	}
	if err := checkObject(e.Payload, depth); err != nil {
		return fmt.Errorf("codec: Payload is not a JSON object: %w", err)
	}
	return nil
}

func checkText(name, value string, required bool) error {
	if value == "" {
		if required {
			return fmt.Errorf("codec: %s is empty", name)
		}
		return nil
	}
	if problem := textProblem(value); problem != "" {
		return fmt.Errorf("codec: %s %s", name, problem)
	}
	return nil
}

// readableBefore reports whether older readers than Version understand the
// payload, which is when readableFrom is written.
func (e *Envelope) readableBefore() bool {
	return e.ReadableFrom > 0 && e.ReadableFrom < e.Version
}

// textSize is about how much room the text of e takes.
func (e *Envelope) textSize() int {
	return len(e.ID) + len(e.AggregateID) + len(e.Type) + len(e.CorrelationID) + len(e.CausationID) +
		len(e.Source) + len(e.Traceparent) + len(e.Tracestate) + len(e.Payload)
}
