package codec

import "math/bits"

// Text is looked at eight bytes at a time. In a word, every byte that is looked
// for gets its highest bit set; bytes after the first one found may be wrong,
// so only the first counts.
const (
	lowBits  = 0x0101010101010101
	highBits = 0x8080808080808080
)

// marks finds quotes, backslashes and control characters: what does not stand
// for itself in a JSON string.
func marks(word uint64) uint64 {
	quotes := word ^ lowBits*'"'
	backslashes := word ^ lowBits*'\\'
	return ((quotes-lowBits)&^quotes | (backslashes-lowBits)&^backslashes | (word-lowBits*' ')&^word) & highBits
}

// wordAt reads eight bytes; the first is the lowest.
func wordAt[T string | []byte](text T, i int) uint64 {
	s := text[i : i+8]
	return uint64(s[0]) | uint64(s[1])<<8 | uint64(s[2])<<16 | uint64(s[3])<<24 |
		uint64(s[4])<<32 | uint64(s[5])<<40 | uint64(s[6])<<48 | uint64(s[7])<<56
}

// firstMark returns the offset at or after i of the first byte that does not
// stand for itself in a JSON string, or the length of the text.
func firstMark(text []byte, i int) int {
	for ; i+8 <= len(text); i += 8 {
		if found := marks(wordAt(text, i)); found != 0 {
			return i + bits.TrailingZeros64(found)/8
		}
	}
	for i < len(text) && text[i] >= ' ' && text[i] != '"' && text[i] != '\\' {
		i++
	}
	return i
}

// firstEscape is firstMark for text that is not JSON yet; it stops at the first
// byte that is not ASCII too.
func firstEscape(text string, i int) int {
	for ; i+8 <= len(text); i += 8 {
		word := wordAt(text, i)
		if found := marks(word) | word&highBits; found != 0 {
			return i + bits.TrailingZeros64(found)/8
		}
	}
	for i < len(text) && text[i] >= ' ' && text[i] < 0x80 && text[i] != '"' && text[i] != '\\' {
		i++
	}
	return i
}
