package codec

import (
	"bytes"
	"fmt"
)

// maxDepth is how deep objects and arrays of a body may nest; the body itself
// is the first level. encoding/json stops at 10 000, which costs an attacker
// little and a reader of the payload a lot.
const maxDepth = 128

// syntaxError says where a text stops being JSON. The text itself is not in it:
// payloads do not belong in logs.
type syntaxError struct {
	offset int
	reason string
}

func (e *syntaxError) Error() string {
	return fmt.Sprintf("%s at byte %d", e.reason, e.offset)
}

// span is a piece of the scanned text, from its first byte to the byte after
// its last. The zero span is a member that is not there, since no value begins
// at byte 0 of an object.
type span struct{ from, to int }

// scanner walks over a JSON text once and accepts what encoding/json accepts,
// apart from maxDepth. Its methods take the offset to begin at and return the
// offset after what they read.
type scanner struct {
	text  []byte
	depth int
}

// valid reports whether the whole text is one JSON value, and how it is not.
func valid(text []byte) error {
	s := scanner{text: text}
	i, err := s.value(s.skipSpace(0))
	if err != nil {
		return err
	}
	return s.end(i)
}

// eachMember calls visit with the name (between its quotes, escapes as written)
// and the value of every member of the object that the whole text is, in order.
// The text is known to be valid JSON only when the result is nil. depth is how
// many levels already surround the text.
func eachMember(text []byte, depth int, visit func(name []byte, value span)) error {
	s := scanner{text: text, depth: depth}
	i := s.skipSpace(0)
	if i >= len(text) || text[i] != '{' {
		return s.fail(i, "not an object")
	}
	if err := s.enter(i); err != nil {
		return err
	}
	i = s.skipSpace(i + 1)
	if i < len(text) && text[i] == '}' {
		return s.end(i + 1)
	}
	for {
		name, value, next, err := s.member(i)
		if err != nil {
			return err
		}
		visit(text[name.from+1:name.to-1], value)
		more, next, err := s.next(next, '}')
		if err != nil {
			return err
		}
		if !more {
			return s.end(next)
		}
		i = next
	}
}

func (s *scanner) fail(offset int, reason string) error {
	if offset >= len(s.text) {
		offset, reason = len(s.text), "the text ends too early"
	}
	return &syntaxError{offset: offset, reason: reason}
}

func (s *scanner) enter(i int) error {
	s.depth++
	if s.depth > maxDepth {
		return s.fail(i, fmt.Sprintf("nested deeper than %d levels", maxDepth))
	}
	return nil
}

// end checks that nothing but space follows.
func (s *scanner) end(i int) error {
	if i = s.skipSpace(i); i < len(s.text) {
		return s.fail(i, "more text after the value")
	}
	return nil
}

func (s *scanner) skipSpace(i int) int {
	for i < len(s.text) && s.text[i] <= ' ' && isSpace(s.text[i]) {
		i++
	}
	return i
}

// value reads the value that begins at i.
func (s *scanner) value(i int) (int, error) {
	if i >= len(s.text) {
		return i, s.fail(i, "")
	}
	switch c := s.text[i]; c {
	case '"':
		return s.string(i)
	case '{':
		return s.object(i)
	case '[':
		return s.array(i)
	case 't':
		return s.literal(i, "true")
	case 'f':
		return s.literal(i, "false")
	case 'n':
		return s.literal(i, "null")
	default:
		if c == '-' || isDigit(c) {
			return s.number(i)
		}
		return i, s.fail(i, "not the beginning of a value")
	}
}

func (s *scanner) object(i int) (int, error) {
	if err := s.enter(i); err != nil {
		return i, err
	}
	i = s.skipSpace(i + 1)
	more := i >= len(s.text) || s.text[i] != '}'
	if !more {
		i++
	}
	for more {
		_, _, next, err := s.member(i)
		if err != nil {
			return i, err
		}
		if more, i, err = s.next(next, '}'); err != nil {
			return i, err
		}
	}
	s.depth--
	return i, nil
}

func (s *scanner) array(i int) (int, error) {
	if err := s.enter(i); err != nil {
		return i, err
	}
	i = s.skipSpace(i + 1)
	more := i >= len(s.text) || s.text[i] != ']'
	if !more {
		i++
	}
	for more {
		next, err := s.value(i)
		if err != nil {
			return i, err
		}
		if more, i, err = s.next(next, ']'); err != nil {
			return i, err
		}
	}
	s.depth--
	return i, nil
}

// member reads a name and its value; name includes its quotes.
func (s *scanner) member(i int) (name, value span, next int, err error) {
	if i >= len(s.text) || s.text[i] != '"' {
		return name, value, i, s.fail(i, "no member name")
	}
	end, err := s.string(i)
	if err != nil {
		return name, value, i, err
	}
	name = span{i, end}
	i = s.skipSpace(end)
	if i >= len(s.text) || s.text[i] != ':' {
		return name, value, i, s.fail(i, "no colon after a member name")
	}
	i = s.skipSpace(i + 1)
	if end, err = s.value(i); err != nil {
		return name, value, i, err
	}
	return name, span{i, end}, end, nil
}

// next reads the comma or the closing bracket after an element; after a comma
// it returns where the following element begins.
func (s *scanner) next(i int, closing byte) (more bool, after int, err error) {
	i = s.skipSpace(i)
	if i < len(s.text) {
		switch s.text[i] {
		case ',':
			return true, s.skipSpace(i + 1), nil
		case closing:
			return false, i + 1, nil
		}
	}
	return false, i, s.fail(i, "neither a comma nor a closing bracket")
}

func (s *scanner) string(i int) (int, error) {
	text := s.text
	for i++; ; i++ {
		i = firstMark(text, i)
		if i >= len(text) {
			return i, s.fail(i, "")
		}
		switch text[i] {
		case '"':
			return i + 1, nil
		case '\\':
			i++
			if i >= len(text) {
				return i, s.fail(i, "")
			}
			switch text[i] {
			case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
			case 'u':
				for range 4 {
					i++
					if i >= len(text) || hexValue(text[i]) < 0 {
						return i, s.fail(i, "not four hexadecimal digits after \\u")
					}
				}
			default:
				return i, s.fail(i, "unknown escape in a string")
			}
		default:
			return i, s.fail(i, "control character in a string")
		}
	}
}

func (s *scanner) number(i int) (int, error) {
	if s.text[i] == '-' {
		i++
	}
	var err error
	if i < len(s.text) && s.text[i] == '0' {
		i++
	} else if i, err = s.digits(i); err != nil {
		return i, err
	}
	if i < len(s.text) && s.text[i] == '.' {
		if i, err = s.digits(i + 1); err != nil {
			return i, err
		}
	}
	if i < len(s.text) && (s.text[i] == 'e' || s.text[i] == 'E') {
		i++
		if i < len(s.text) && (s.text[i] == '+' || s.text[i] == '-') {
			i++
		}
		return s.digits(i)
	}
	return i, nil
}

// digits reads one digit or more.
func (s *scanner) digits(i int) (int, error) {
	if i >= len(s.text) || !isDigit(s.text[i]) {
		return i, s.fail(i, "no digit in a number")
	}
	for i < len(s.text) && isDigit(s.text[i]) {
		i++
	}
	return i, nil
}

func (s *scanner) literal(i int, word string) (int, error) {
	if !bytes.HasPrefix(s.text[i:], []byte(word)) {
		return i, s.fail(i, "not the beginning of a value")
	}
	return i + len(word), nil
}

// isSpace: https://www.rfc-editor.org/rfc/rfc8259#section-2
func isSpace(c byte) bool { return c == ' ' || c == '\n' || c == '\r' || c == '\t' }

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

// hexValue returns the value of a hexadecimal digit, or -1.
func hexValue(c byte) rune {
	switch {
	case isDigit(c):
		return rune(c - '0')
	case 'a' <= c && c <= 'f':
		return rune(c-'a') + 10
	case 'A' <= c && c <= 'F':
		return rune(c-'A') + 10
	}
	return -1
}

// checkObject says why the whole text is not one JSON object.
func checkObject(text []byte, depth int) error {
	s := scanner{text: text, depth: depth}
	i := s.skipSpace(0)
	if i >= len(text) || text[i] != '{' {
		return s.fail(i, "not an object")
	}
	i, err := s.object(i)
	if err != nil {
		return err
	}
	return s.end(i)
}
