// Package window tells which places of a log are finished and which are not: from
// the oldest unfinished one on, within a bound. Drivers whose broker keeps one
// position per source use it, with the finished places beyond the position in
// the text that [Encode] makes.
package window

import "math/bits"

// capacity is the number of offsets that the ring of a window tells apart: a
// power of two above Most.
const capacity = 1 << 15

// Window knows, for one owned source, which offsets are finished. It begins
// at base, the oldest offset that is not, and ends before next, the first one
// not seen yet. Offsets that the log does not have (compacted, aborted, markers
// of transactions) count as finished. It does no locking and no input or output.
type Window struct {
	Base  int64 // the oldest place that is unfinished
	Next  int64 // the first that was not seen
	top   int64 // one above the highest offset known to be finished, at least next
	max   int   // offsets from base on that may be taken
	Bytes int   // size of what is taken and unfinished
	ring  []uint64
}

// Admission is the answer of [Window.Admit].
type Admission int

const (
	Take Admission = iota // hand it over; it is unfinished from now on
	Skip                  // it is finished already, or was seen
	Full                  // it does not fit yet
)

// New begins at an offset, with spans beyond it that are finished.
func New(start int64, finished []Span, most int) *Window {
	w := &Window{Base: start, Next: start, top: start, max: most, ring: make([]uint64, capacity/64)}
	for _, s := range finished {
		for offset := max(s.From, start); offset < min(s.To, start+capacity); offset++ {
			w.set(offset)
			w.top = max(w.top, offset+1)
		}
	}
	return w
}

func (w *Window) set(offset int64)   { w.ring[offset/64%int64(len(w.ring))] |= 1 << (offset % 64) }
func (w *Window) clear(offset int64) { w.ring[offset/64%int64(len(w.ring))] &^= 1 << (offset % 64) }

// Has reports whether an offset within the window is finished.
func (w *Window) Has(offset int64) bool {
	return w.ring[offset/64%int64(len(w.ring))]&(1<<(offset%64)) != 0
}

// Admit sees the next record of the log. Offsets arrive in rising order; what
// is left out between two of them does not exist and is finished.
func (w *Window) Admit(offset int64, size int) Admission {
	if offset < w.Next {
		return Skip
	}
	if w.Base == w.Next { // nothing is unfinished: begin anew at this offset
		for o := w.Base; o < min(offset, w.top); o++ {
			w.clear(o)
		}
		w.Base, w.Next = offset, offset
	} else if !w.Fits(offset) {
		return Full
	}
	for o := w.Next; o < offset; o++ {
		w.set(o)
	}
	finished := offset < w.top && w.Has(offset)
	w.Next = offset + 1
	w.top = max(w.top, w.Next)
	if finished {
		w.advance()
		return Skip
	}
	w.Bytes += size
	return Take
}

// Fits reports whether an offset lies within the window, or would begin it.
func (w *Window) Fits(offset int64) bool {
	return w.Base == w.Next || offset-w.Base < int64(w.max)
}

// Finish marks an offset that was taken. It reports whether that changed
// anything; a second call for the same offset does not.
func (w *Window) Finish(offset int64, size int) bool {
	if offset < w.Base || offset >= w.Next || w.Has(offset) {
		return false
	}
	w.set(offset)
	w.Bytes -= size
	w.advance()
	return true
}

// advance moves base past what is finished.
func (w *Window) advance() {
	for w.Base < w.Next && w.Has(w.Base) {
		w.clear(w.Base)
		w.Base++
	}
}

// Length is how many offsets there are from the oldest unfinished one on.
func (w *Window) Length() int { return int(w.Next - w.Base) }

// Finished lists the spans beyond base that are finished, in rising order.
func (w *Window) Finished() []Span {
	var spans []Span
	for offset := w.Base + 1; offset < w.top; {
		word := w.ring[offset/64%int64(len(w.ring))] >> (offset % 64)
		if word == 0 {
			offset += 64 - offset%64
			continue
		}
		offset += int64(bits.TrailingZeros64(word))
		if offset >= w.top {
			break
		}
		if last := len(spans) - 1; last >= 0 && spans[last].To == offset {
			spans[last].To++
		} else {
			spans = append(spans, Span{offset, offset + 1})
		}
		offset++
		if offset%64 == 0 || offset >= w.top {
			continue
		}
		// The rest of a run within this word at once.
		word = w.ring[offset/64%int64(len(w.ring))] >> (offset % 64)
		run := min(int64(bits.TrailingZeros64(^word)), 64-offset%64, w.top-offset)
		spans[len(spans)-1].To += run
		offset += run
	}
	return spans
}
