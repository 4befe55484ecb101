package codec

import "time"

// wireLength is the length of "2006-01-02T15:04:05.000Z", the format of
// JavaScript's Date.prototype.toISOString.
const wireLength = len("2006-01-02T15:04:05.000Z")

// inMilliseconds is t as an event has it: UTC, cut to milliseconds.
func inMilliseconds(t time.Time) time.Time {
	if t.IsZero() {
		return time.Time{}
	}
	return time.UnixMilli(t.UnixMilli()).UTC()
}

// parseMoment reads a time of RFC 3339 in any precision and offset. It reports
// false for anything else, among it times without an offset, whose meaning
// depends on where they were written, and those that leave the years 0 to 9999
// when they are turned to UTC.
func parseMoment(text []byte) (time.Time, bool) {
	var t time.Time
	if t.UnmarshalText(text) != nil {
		return time.Time{}, false
	}
	t = inMilliseconds(t)
	if year := t.Year(); year < 0 || year > 9999 {
		return time.Time{}, false
	}
	return t, true
}

// appendMoment appends t, which is in UTC and in the years 0 to 9999.
func appendMoment(to []byte, t time.Time) []byte {
	year, month, day := t.Date()
	hour, minute, second := t.Clock()
	to = appendTwoDigits(to, year/100)
	to = appendTwoDigits(to, year%100)
	to = appendTwoDigits(append(to, '-'), int(month))
	to = appendTwoDigits(append(to, '-'), day)
	to = appendTwoDigits(append(to, 'T'), hour)
	to = appendTwoDigits(append(to, ':'), minute)
	to = appendTwoDigits(append(to, ':'), second)
	millisecond := t.Nanosecond() / int(time.Millisecond)
	to = append(to, '.', byte('0'+millisecond/100))
	to = appendTwoDigits(to, millisecond%100)
	return append(to, 'Z')
}

func appendTwoDigits(to []byte, n int) []byte {
	return append(to, byte('0'+n/10), byte('0'+n%10))
}
