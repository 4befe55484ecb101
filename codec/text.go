package codec

import (
	"bytes"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// appendUnquoted appends what a JSON string means, given what stands between
// its quotes. The scanner has accepted raw before. As in encoding/json, bytes
// that are not UTF-8 and surrogates without a partner become U+FFFD.
func appendUnquoted(to, raw []byte) []byte {
	for i := 0; i < len(raw); {
		c := raw[i]
		switch {
		case c == '\\' && i+1 < len(raw):
			if raw[i+1] != 'u' {
				to = append(to, unescape(raw[i+1]))
				i += 2
				continue
			}
			r := hexRune(raw[i:])
			i += 6
			if utf16.IsSurrogate(r) {
				pair := unicode.ReplacementChar
				if i < len(raw) {
					pair = utf16.DecodeRune(r, hexRune(raw[i:]))
				}
				if r = pair; r != unicode.ReplacementChar {
					i += 6
				}
			}
			to = utf8.AppendRune(to, r)
		case c < utf8.RuneSelf:
			to = append(to, c)
			i++
		default:
			r, size := utf8.DecodeRune(raw[i:])
			to = utf8.AppendRune(to, r)
			i += size
		}
	}
	return to
}

// hexRune reads \uXXXX at the beginning of raw, or returns -1.
func hexRune(raw []byte) rune {
	if len(raw) < 6 || raw[0] != '\\' || raw[1] != 'u' {
		return -1
	}
	var r rune
	for _, c := range raw[2:6] {
		r = r<<4 | hexValue(c)
	}
	return r
}

func unescape(c byte) byte {
	switch c {
	case 'b':
		return '\b'
	case 'f':
		return '\f'
	case 'n':
		return '\n'
	case 'r':
		return '\r'
	case 't':
		return '\t'
	}
	return c // quote, backslash, slash
}

// isVerbatim reports whether a JSON string means exactly its own bytes.
func isVerbatim(raw []byte) bool {
	return bytes.IndexByte(raw, '\\') < 0 && utf8.Valid(raw)
}

const hexDigits = "0123456789ABCDEF"

// appendQuoted appends s as a JSON string. What is not UTF-8 becomes U+FFFD, as
// in encoding/json; < > & stand for themselves; U+2028 and U+2029 are escaped
// because JavaScript before 2019 took them for line ends.
func appendQuoted(to []byte, s string) []byte {
	to = append(to, '"')
	from := 0
	for i := firstEscape(s, 0); i < len(s); i = firstEscape(s, i) {
		r, size := utf8.DecodeRuneInString(s[i:])
		if escapes(r, size) {
			to = append(to, s[from:i]...)
			to = appendEscape(to, r)
			from = i + size
		}
		i += size
	}
	to = append(to, s[from:]...)
	return append(to, '"')
}

func escapes(r rune, size int) bool {
	return r < utf8.RuneSelf || r == '\u2028' || r == '\u2029' || r == utf8.RuneError && size == 1
}

func appendEscape(to []byte, r rune) []byte {
	switch r {
	case '"', '\\':
		return append(to, '\\', byte(r))
	case '\b':
		return append(to, '\\', 'b')
	case '\f':
		return append(to, '\\', 'f')
	case '\n':
		return append(to, '\\', 'n')
	case '\r':
		return append(to, '\\', 'r')
	case '\t':
		return append(to, '\\', 't')
	}
	return append(to, '\\', 'u', hexDigits[r>>12&15], hexDigits[r>>8&15], hexDigits[r>>4&15], hexDigits[r&15])
}
