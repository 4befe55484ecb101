package codec

import (
	"strconv"
	"strings"
	"time"

	"github.com/tidings-go/tidings/driver"
)

// member is a name at the top level of a body that any accepted form gives a
// meaning to.
type member int

const (
	memberUnknown member = iota
	memberID
	memberAggregateID
	memberEventType
	memberOccurredAt
	memberVersion
	memberReadableFrom
	memberCorrelationID
	memberCausationID
	memberSource
	memberTraceparent
	memberTracestate
	memberPayload
	memberSpecVersion
	memberType
	memberTime
	memberSubject
	memberLowerReadableFrom
	memberLowerCorrelationID
	memberLowerCausationID
	memberData
	memberDataBase64
	memberNotificationType
	memberNotificationID
	memberNotificationTopic
	memberNotificationTime
	memberNotificationToken
	memberNotificationAttributes
	memberNotificationMessage
	memberCount
)

func memberNamed(name []byte) member {
	switch string(name) {
	case nameID: // of a CloudEvent too, as are version, source and the trace
		return memberID
	case nameAggregateID:
		return memberAggregateID
	case nameEventType:
		return memberEventType
	case nameOccurredAt:
		return memberOccurredAt
	case nameVersion:
		return memberVersion
	case nameReadableFrom:
		return memberReadableFrom
	case nameCorrelationID:
		return memberCorrelationID
	case nameCausationID:
		return memberCausationID
	case nameSource:
		return memberSource
	case nameTraceparent:
		return memberTraceparent
	case nameTracestate:
		return memberTracestate
	case namePayload:
		return memberPayload
	case attributeSpecVersion:
		return memberSpecVersion
	case attributeType:
		return memberType
	case attributeTime:
		return memberTime
	case attributeSubject:
		return memberSubject
	case attributeReadableFrom:
		return memberLowerReadableFrom
	case attributeCorrelationID:
		return memberLowerCorrelationID
	case attributeCausationID:
		return memberLowerCausationID
	case attributeData:
		return memberData
	case attributeDataBase64:
		return memberDataBase64
	case "Type":
		return memberNotificationType
	case "MessageId":
		return memberNotificationID
	case "TopicArn":
		return memberNotificationTopic
	case "Timestamp":
		return memberNotificationTime
	case "Token":
		return memberNotificationToken
	case "MessageAttributes":
		return memberNotificationAttributes
	case "Message":
		return memberNotificationMessage
	}
	return memberUnknown
}

// members is where the known members of a body lie.
type members struct {
	body  []byte
	spans [memberCount]span
}

// read finds the members of body, which must be one JSON object.
func (m *members) read(body []byte) error {
	m.body = body
	m.spans = [memberCount]span{}
	return eachMember(body, 0, func(name []byte, value span) {
		m.spans[memberNamed(unescapedName(name))] = value
	})
}

// unescapedName is what a member name means, as far as a known name, which is
// ASCII, can be meant; almost none needs work.
func unescapedName(name []byte) []byte {
	for _, c := range name {
		if c == '\\' {
			return appendUnquoted(nil, name)
		}
	}
	return name
}

// raw is a member's value as it is written, nil when there is none.
func (m *members) raw(which member) []byte {
	s := m.spans[which]
	return m.body[s.from:s.to:s.to]
}

// kind is the first byte of a member's value: one of { [ " t f n - 0…9, and 0
// when there is none.
func (m *members) kind(which member) byte {
	s := m.spans[which]
	if s.to == 0 {
		return 0
	}
	return m.body[s.from]
}

// kindName is kind in words.
func (m *members) kindName(which member) string {
	switch m.kind(which) {
	case 0:
		return "missing"
	case '{':
		return "an object"
	case '[':
		return "an array"
	case '"':
		return "a string"
	case 't', 'f':
		return "a boolean"
	case 'n':
		return "null"
	}
	return "a number"
}

func (m *members) isText(which member) bool { return m.kind(which) == '"' }

// text is what a string member means, "" when it is no string. guess is
// returned in place of a new string when it is equal: headers repeat most of an
// envelope.
func (m *members) text(which member, guess string) string {
	if !m.isText(which) {
		return ""
	}
	s := m.spans[which]
	raw := m.body[s.from+1 : s.to-1]
	if isVerbatim(raw) {
		if string(raw) == guess {
			return guess
		}
		return string(raw)
	}
	return string(m.unquoted(which))
}

// unquoted is what a string member means, in memory of its own; nil when it is no
// string.
func (m *members) unquoted(which member) []byte {
	if !m.isText(which) {
		return nil
	}
	s := m.spans[which]
	raw := m.body[s.from+1 : s.to-1]
	return appendUnquoted(make([]byte, 0, len(raw)), raw) // it is never longer, but for bytes that are no UTF-8
}

// identifier is text, or the digits of a number: some publishers count.
func (m *members) identifier(which member, guess string) string {
	if c := m.kind(which); c == '-' || isDigit(c) {
		return string(m.raw(which))
	}
	return m.text(which, guess)
}

// moment reads a time; false when there is none or it cannot be told.
func (m *members) moment(which member) (time.Time, bool) {
	if !m.isText(which) {
		return time.Time{}, false
	}
	s := m.spans[which]
	raw := m.body[s.from+1 : s.to-1]
	if !isVerbatim(raw) {
		raw = appendUnquoted(nil, raw)
	}
	return parseMoment(raw)
}

// version reads a version, as a number or in quotes; header stands in for one
// that is missing or null, and 1 when that is silent too.
func (m *members) version(which member, name, header string) (int, error) {
	switch c := m.kind(which); {
	case c == 0, c == 'n':
		return versionOf("header "+driver.HeaderEventVersion, header, 1)
	case c == '"':
		text := m.text(which, "")
		if text == "" {
			return 0, malformed("%s is empty", name)
		}
		return versionOf(name, text, 1)
	case c == '-', isDigit(c):
		return parseVersion(name, m.raw(which))
	}
	return 0, malformed("%s is %s, not a number", name, m.kindName(which))
}

// readableFrom reads the oldest version whose readers understand the payload.
func (m *members) readableFrom(which member, name string, version int) (int, error) {
	if c := m.kind(which); c == 0 || c == 'n' {
		return version, nil
	}
	from, err := m.version(which, name, "")
	return min(from, version), err
}

// versionOf reads a version from text; absent is what empty text means.
func versionOf(name, text string, absent int) (int, error) {
	if text == "" {
		return absent, nil
	}
	return parseVersion(name, []byte(text))
}

func readableFromOf(name, text string, version int) (int, error) {
	from, err := versionOf(name, text, version)
	return min(from, version), err
}

// parseVersion accepts a whole number from 1 to maxVersion, with a fraction of
// zeros for languages that print whole floating-point numbers so. It is strict
// because a guessed version picks the wrong upcast.
func parseVersion(name string, text []byte) (int, error) {
	if len(text) == 1 && '1' <= text[0] && text[0] <= '9' {
		return int(text[0] - '0'), nil
	}
	whole, fraction, _ := strings.Cut(string(text), ".")
	if strings.Trim(fraction, "0") == "" && whole != "" && isDigit(whole[0]) {
		if n, err := strconv.ParseInt(whole, 10, 32); err == nil && n >= 1 {
			return int(n), nil
		}
	}
	return 0, malformed("%s is %s, not a whole number from 1 to %d", name, quotable(string(text)), maxVersion)
}
