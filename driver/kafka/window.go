package kafka

import "math/bits"

// capacity is the number of offsets that the ring of a window tells apart: a
// power of two above maxWindow.
const capacity = 1 << 15

// window knows, for one owned partition, which offsets are finished. It begins
// at base, the oldest offset that is not, and ends before next, the first one
// not seen yet. Offsets that the log does not have (compacted, aborted, markers
// of transactions) count as finished. It does no locking and no input or output.
type window struct {
	base  int64
	next  int64
	top   int64 // one above the highest offset known to be finished, at least next
	max   int   // offsets from base on that may be taken
	bytes int   // size of what is taken and unfinished
	ring  []uint64
}

// admission is the answer of [window.admit].
type admission int

const (
	admitTake admission = iota // hand it over; it is unfinished from now on
	admitSkip                  // it is finished already, or was seen
	admitFull                  // it does not fit yet
)

// newWindow begins at an offset, with spans beyond it that are finished.
func newWindow(start int64, finished []span, most int) *window {
	w := &window{base: start, next: start, top: start, max: most, ring: make([]uint64, capacity/64)}
	for _, s := range finished {
		for offset := max(s.from, start); offset < min(s.to, start+capacity); offset++ {
			w.set(offset)
			w.top = max(w.top, offset+1)
		}
	}
	return w
}

func (w *window) set(offset int64)   { w.ring[offset/64%int64(len(w.ring))] |= 1 << (offset % 64) }
func (w *window) clear(offset int64) { w.ring[offset/64%int64(len(w.ring))] &^= 1 << (offset % 64) }
func (w *window) has(offset int64) bool {
	return w.ring[offset/64%int64(len(w.ring))]&(1<<(offset%64)) != 0
}

// admit sees the next record of the log. Offsets arrive in rising order; what
// is left out between two of them does not exist and is finished.
func (w *window) admit(offset int64, size int) admission {
	if offset < w.next {
		return admitSkip
	}
	if w.base == w.next { // nothing is unfinished: begin anew at this offset
		for o := w.base; o < min(offset, w.top); o++ {
			w.clear(o)
		}
		w.base, w.next = offset, offset
	} else if !w.fits(offset) {
		return admitFull
	}
	for o := w.next; o < offset; o++ {
		w.set(o)
	}
	finished := offset < w.top && w.has(offset)
	w.next = offset + 1
	w.top = max(w.top, w.next)
	if finished {
		w.advance()
		return admitSkip
	}
	w.bytes += size
	return admitTake
}

// fits reports whether an offset lies within the window, or would begin it.
func (w *window) fits(offset int64) bool {
	return w.base == w.next || offset-w.base < int64(w.max)
}

// finish marks an offset that was taken. It reports whether that changed
// anything; a second call for the same offset does not.
func (w *window) finish(offset int64, size int) bool {
	if offset < w.base || offset >= w.next || w.has(offset) {
		return false
	}
	w.set(offset)
	w.bytes -= size
	w.advance()
	return true
}

// advance moves base past what is finished.
func (w *window) advance() {
	for w.base < w.next && w.has(w.base) {
		w.clear(w.base)
		w.base++
	}
}

// length is how many offsets there are from the oldest unfinished one on.
func (w *window) length() int { return int(w.next - w.base) }

// finished lists the spans beyond base that are finished, in rising order.
func (w *window) finished() []span {
	var spans []span
	for offset := w.base + 1; offset < w.top; {
		word := w.ring[offset/64%int64(len(w.ring))] >> (offset % 64)
		if word == 0 {
			offset += 64 - offset%64
			continue
		}
		offset += int64(bits.TrailingZeros64(word))
		if offset >= w.top {
			break
		}
		if last := len(spans) - 1; last >= 0 && spans[last].to == offset {
			spans[last].to++
		} else {
			spans = append(spans, span{offset, offset + 1})
		}
		offset++
		if offset%64 == 0 || offset >= w.top {
			continue
		}
		// The rest of a run within this word at once.
		word = w.ring[offset/64%int64(len(w.ring))] >> (offset % 64)
		run := min(int64(bits.TrailingZeros64(^word)), 64-offset%64, w.top-offset)
		spans[len(spans)-1].to += run
		offset += run
	}
	return spans
}
