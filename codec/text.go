package codec

import (
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
	ascii := true
	for _, c := range raw {
		if c == '\\' {
			return false
		}
		ascii = ascii && c < utf8.RuneSelf
	}
	return ascii || utf8.Valid(raw)
}

// verbatim marks the ASCII characters that a written string needs no escape for.
var verbatim = func() (table [utf8.RuneSelf]bool) {
	for c := ' '; c < utf8.RuneSelf; c++ {
		table[c] = c != '"' && c != '\\'
	}
	return table
}()

const hexDigits = "0123456789ABCDEF"

// appendQuoted appends s as a JSON string. What is not UTF-8 becomes U+FFFD, as
// in encoding/json; < > & stand for themselves; U+2028 and U+2029 are escaped
// because JavaScript before 2019 took them for line ends.
func appendQuoted(to []byte, s string) []byte {
	to = append(to, '"')
	from := 0
	for i := 0; i < len(s); {
		c := s[i]
		if c < utf8.RuneSelf {
			if verbatim[c] {
				i++
				continue
			}
			to = append(to, s[from:i]...)
			switch c {
			case '"', '\\':
				to = append(to, '\\', c)
			case '\b':
				to = append(to, '\\', 'b')
			case '\f':
				to = append(to, '\\', 'f')
			case '\n':
				to = append(to, '\\', 'n')
			case '\r':
				to = append(to, '\\', 'r')
			case '\t':
				to = append(to, '\\', 't')
			default:
				to = append(to, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
			}
			i++
			from = i
			continue
		}
		r, size := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && size == 1:
			to = append(to, s[from:i]...)
			to = append(to, `\ufffd`...)
			from = i + size
		case r == '\u2028', r == '\u2029':
			to = append(to, s[from:i]...)
			to = append(to, `\u202`...)
			to = append(to, hexDigits[r&15])
			from = i + size
		}
		i += size
	}
	to = append(to, s[from:]...)
	return append(to, '"')
}
