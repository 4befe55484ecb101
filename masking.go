package tidings

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/tidings-go/tidings/codec"
	"github.com/tidings-go/tidings/driver"
)

// mask stands for a value that is not shown.
const mask = `"***"`

// wordSensitive is the one word of the struct tag "tidings".
const wordSensitive = "sensitive"

// sensitiveTag reads the tag of a payload's field.
func sensitiveTag(tag reflect.StructTag) (sensitive bool, problem string) {
	text, found := tag.Lookup("tidings")
	if !found {
		return false, ""
	}
	for word := range strings.SplitSeq(text, ",") {
		if word != wordSensitive {
			return false, fmt.Sprintf("has the tag tidings:%q: the one word there is %q", text, wordSensitive)
		}
	}
	return true, ""
}

func (n *payloadNode) hasSensitive() bool {
	if n.element != nil && n.element.hasSensitive() {
		return true
	}
	return slices.ContainsFunc(n.fields, func(f payloadField) bool { return f.sensitive || f.node.hasSensitive() })
}

// Masked is the payload of an event as JSON to show to people: the value of each
// field that is tagged `tidings:"sensitive"`, whatever is in it, is "***". It is
// what logs, traces, listings and consoles show of a payload, where they show any.
// What cannot be written as JSON is a sentence in parentheses.
//
// Nothing masks what a handler writes itself: its logs, and the errors it returns,
// which are logged and kept with a dead letter.
func Masked(e DomainEvent) string {
	r := recordOf(e)
	if r == nil || r.head().definition == nil {
		return "(no event)"
	}
	raw, err := r.marshal()
	if err != nil {
		return "(not JSON)"
	}
	return r.head().definition.payload.masked(raw)
}

// Masked is [Masked] for a payload as the wire has it, of this or of another
// version. Beside sensitive fields everything that the contract does not know is
// "***": a newer version may have tagged it.
func (c Contract[P]) Masked(payload []byte) string { return c.definition.payload.masked(payload) }

// Masked is what a dead letter, or any other body that came from a broker, may show
// to people: its payload, masked by the contract that a subscription of this bus
// reacts to. What cannot be read, or is of a type that nobody here reacts to, stays
// hidden, because nobody knows what in it is sensitive; only its size is said.
func (b *Bus) Masked(letter *driver.DeadLetter) string {
	if e, ok := letter.Value.(DomainEvent); ok { // it never left the process
		return Masked(e)
	}
	hidden := fmt.Sprintf("(%d bytes, hidden: no contract here says what in them is sensitive)", len(letter.Body))
	e, err := codec.Decode(&driver.Delivery{Message: driver.Message{Channel: letter.Channel, Type: letter.Type, Headers: letter.Headers, Body: letter.Body}})
	if err != nil {
		return hidden
	}
	b.mu.Lock()
	subscriptions := slices.Clone(b.subscriptions)
	b.mu.Unlock()
	for _, s := range subscriptions {
		if reaction, ok := s.reactions[e.Type]; ok {
			return reaction.definition.payload.masked(e.Payload)
		}
	}
	return hidden
}

func (p *payloadPlan) masked(raw []byte) string {
	decoder := json.NewDecoder(bytes.NewReader(raw))
	shown := make([]byte, 0, len(raw)+len(raw)/4)
	shown, err := maskObject(decoder, p.root, shown)
	if err != nil || decoder.More() {
		return fmt.Sprintf("(%d bytes, hidden: not a JSON object)", len(raw))
	}
	return string(shown)
}

var errShape = errors.New("not of the shape that the contract has")

// maskObject appends a struct. Members are found as encoding/json finds them,
// without regard to case.
func maskObject(decoder *json.Decoder, n *payloadNode, to []byte) ([]byte, error) {
	if token, err := decoder.Token(); err != nil || token != json.Delim('{') {
		return to, errors.Join(errShape, err)
	}
	to = append(to, '{')
	for first := true; decoder.More(); first = false {
		token, err := decoder.Token()
		if err != nil {
			return to, err
		}
		name, _ := token.(string)
		if !first {
			to = append(to, ',')
		}
		field := n.field(name)
		if field == nil { // its name is the publisher's, and may say as much as its value
			name = "***"
		}
		if to, err = appendJSON(to, name); err != nil {
			return to, err
		}
		to = append(to, ':')
		if to, err = maskMember(decoder, field, to); err != nil {
			return to, err
		}
	}
	_, err := decoder.Token()
	return append(to, '}'), err
}

func maskMember(decoder *json.Decoder, field *payloadField, to []byte) ([]byte, error) {
	var raw json.RawMessage
	if err := decoder.Decode(&raw); err != nil {
		return to, err
	}
	if field == nil || field.sensitive {
		return append(to, mask...), nil
	}
	return maskValue(raw, field.node, to)
}

// maskValue appends a value of the contract's shape, and the mask for any other.
func maskValue(raw json.RawMessage, n *payloadNode, to []byte) ([]byte, error) {
	if n.kind == pointerKind {
		n = n.element
	}
	if string(raw) == "null" {
		return append(to, raw...), nil
	}
	decoder := json.NewDecoder(bytes.NewReader(raw))
	switch n.kind {
	case structKind:
		if raw[0] == '{' {
			return maskObject(decoder, n, to)
		}
	case mapKind:
		if raw[0] == '{' {
			return maskEach(decoder, n.element, '}', to)
		}
	case sliceKind:
		if raw[0] == '[' {
			return maskEach(decoder, n.element, ']', to)
		}
	default:
		if raw[0] != '{' && raw[0] != '[' {
			return append(to, raw...), nil
		}
	}
	return append(to, mask...), nil
}

// maskEach appends a map or a slice.
func maskEach(decoder *json.Decoder, element *payloadNode, closing byte, to []byte) ([]byte, error) {
	token, err := decoder.Token()
	if err != nil {
		return to, err
	}
	to = append(to, token.(json.Delim).String()...)
	for first := true; decoder.More(); first = false {
		if !first {
			to = append(to, ',')
		}
		if closing == '}' {
			token, err := decoder.Token()
			if err != nil {
				return to, err
			}
			name, _ := token.(string)
			if to, err = appendJSON(to, name); err != nil {
				return to, err
			}
			to = append(to, ':')
		}
		var raw json.RawMessage
		if err := decoder.Decode(&raw); err != nil {
			return to, err
		}
		if to, err = maskValue(raw, element, to); err != nil {
			return to, err
		}
	}
	_, err = decoder.Token()
	return append(to, closing), err
}

func appendJSON(to []byte, text string) ([]byte, error) {
	quoted, err := json.Marshal(text)
	return append(to, quoted...), err
}

// field is the field that a member of an object belongs to, or nil. One of an
// embedded struct that is sensitive is sensitive.
func (n *payloadNode) field(name string) *payloadField {
	for i := range n.fields {
		f := &n.fields[i]
		if !f.embedded {
			if strings.EqualFold(f.name, name) {
				return f
			}
			continue
		}
		if inner := f.node.field(name); inner != nil {
			if f.sensitive {
				return f
			}
			return inner
		}
	}
	return nil
}

// maxDecodeError bounds what an error of decoding quotes, in bytes: encoding/json
// quotes a number in full, however long it is.
const maxDecodeError = 512

// discreet is an error of decoding a payload that quotes little of it, and nothing
// where a field is sensitive: encoding/json, and types that read text, quote what
// they do not like.
func (p *payloadPlan) discreet(err error) error {
	if !p.sensitive {
		if text := err.Error(); len(text) > maxDecodeError {
			return &shortened{trimText(text, maxDecodeError) + "…", err}
		}
		return err
	}
	if wrong, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		kind, _, _ := strings.Cut(wrong.Value, " ")
		return fmt.Errorf("payload field %s is a JSON %s, which is no %v", wrong.Field, kind, wrong.Type)
	}
	if wrong, ok := errors.AsType[*json.SyntaxError](err); ok {
		return fmt.Errorf("the payload is not JSON at byte %d", wrong.Offset)
	}
	if _, ok := errors.AsType[*time.ParseError](err); ok {
		return errors.New("a payload field is no time of RFC 3339; some are sensitive, so no more is said")
	}
	return fmt.Errorf("a payload field does not take its value (%T); some are sensitive, so no more is said", err)
}

// shortened is an error with less text.
type shortened struct {
	text string
	err  error
}

func (e *shortened) Error() string { return e.text }
func (e *shortened) Unwrap() error { return e.err }
