package window

import (
	"encoding/base64"
	"encoding/binary"
	"hash/crc32"
)

// A commit carries the position, which is the oldest unfinished offset, and in
// its metadata the finished offsets beyond it, so that a restart delivers only
// what is unfinished. The metadata is base64 of
//
//	byte 0   format version in the high four bits, kind in the low four
//	byte 1   check over position and payload: foreign metadata must never pass
//	         as ours, because it would make records look finished
//	payload  runs: pairs of uvarint (unfinished, then finished), or
//	         a bitmap: bit n is the offset position+1+n
//
// whichever is shorter. A window of 20 000 offsets needs at most 2 502 bytes or
// 3 336 characters; the broker stores 4 096.
const (
	metadataVersion = 1
	kindRuns        = 0
	kindBitmap      = 1
	// MostText is the longest text that Encode makes, in bytes.
	MostText = 3336
)

// Most is how many places a text can describe: a bitmap of as many bits, in
// base64, fits what Kafka stores with a commit.
const Most = 20_000

// Span is the offsets from, …, to-1.
type Span struct{ From, To int64 }

// Encode describes the spans, which lie beyond position in rising order
// and do not touch. What lies too far beyond to be described is left out: it
// comes again. No Span at all is the empty string.
func Encode(position int64, finished []Span) string {
	var runs []byte
	before, end := position+1, position+Most
	for n, s := range finished {
		if s.From >= end {
			finished = finished[:n]
			break
		}
		runs = binary.AppendUvarint(runs, uint64(s.From-before))
		runs = binary.AppendUvarint(runs, uint64(min(s.To, end)-s.From))
		before = s.To
	}
	if len(finished) == 0 {
		return ""
	}
	payload, kind := runs, byte(kindRuns)
	last := min(finished[len(finished)-1].To, end) - 1
	if length := int(last-position-1)/8 + 1; length < len(runs) {
		payload, kind = make([]byte, length), kindBitmap
		for _, s := range finished {
			for offset := s.From; offset < min(s.To, end); offset++ {
				payload[(offset-position-1)/8] |= 1 << ((offset - position - 1) % 8)
			}
		}
	}
	raw := make([]byte, 2, 2+len(payload))
	raw[0], raw[1] = metadataVersion<<4|kind, check(position, payload)
	return base64.RawStdEncoding.EncodeToString(append(raw, payload...))
}

// Decode returns the finished spans beyond a committed position. What
// it does not know, or finds malformed, counts as empty: records come again and
// none is skipped.
func Decode(position int64, metadata string) []Span {
	if metadata == "" || len(metadata) > MostText || position < 0 {
		return nil
	}
	raw, err := base64.RawStdEncoding.Strict().DecodeString(metadata)
	if err != nil || len(raw) < 3 || raw[0]>>4 != metadataVersion || raw[1] != check(position, raw[2:]) {
		return nil
	}
	payload := raw[2:]
	switch raw[0] & 0xf {
	case kindRuns:
		return decodeRuns(position, payload)
	case kindBitmap:
		return decodeBitmap(position, payload)
	}
	return nil
}

func decodeRuns(position int64, payload []byte) (finished []Span) {
	at, end := position+1, position+Most
	for len(payload) > 0 {
		gap, n := binary.Uvarint(payload)
		if n <= 0 || gap > Most || gap == 0 && finished != nil {
			return nil
		}
		payload = payload[n:]
		length, n := binary.Uvarint(payload)
		if n <= 0 || length == 0 || length > Most {
			return nil
		}
		payload = payload[n:]
		s := Span{at + int64(gap), at + int64(gap) + int64(length)}
		if s.To > end {
			return nil
		}
		finished = append(finished, s)
		at = s.To
	}
	return finished
}

func decodeBitmap(position int64, payload []byte) (finished []Span) {
	if payload[len(payload)-1] == 0 || len(payload)*8 > Most {
		return nil
	}
	for n := range int64(len(payload) * 8) {
		if payload[n/8]&(1<<(n%8)) == 0 {
			continue
		}
		offset := position + 1 + n
		if last := len(finished) - 1; last >= 0 && finished[last].To == offset {
			finished[last].To++
		} else {
			finished = append(finished, Span{offset, offset + 1})
		}
	}
	return finished
}

func check(position int64, payload []byte) byte {
	var head [8]byte
	binary.BigEndian.PutUint64(head[:], uint64(position))
	return byte(crc32.Update(crc32.ChecksumIEEE(head[:]), crc32.IEEETable, payload))
}
