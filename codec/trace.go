package codec

import "github.com/tidings-go/tidings/driver"

// Trace context that is longer than this is left out. W3C Trace Context asks
// for 512 bytes of tracestate at least; a traceparent has 55.
const (
	maxTraceparentSize = 128
	maxTracestateSize  = 1024
)

// traceContext returns what of a trace context is fit to travel, on the way out
// and on the way in: a broken one must not cost the event. A tracestate without
// its traceparent means nothing.
func traceContext(parent, state string) (string, string) {
	if !isPrintable(parent, maxTraceparentSize) {
		return "", ""
	}
	if parent == "" || !isPrintable(state, maxTracestateSize) {
		return parent, ""
	}
	return parent, state
}

// isPrintable reports whether s is short and can be a header of any broker.
func isPrintable(s string, most int) bool {
	if len(s) > most {
		return false
	}
	for i := 0; i < len(s); i++ {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

func appendTrace(to driver.Headers, e *Envelope) driver.Headers {
	parent, state := traceContext(e.Traceparent, e.Tracestate)
	to = appendHeader(to, driver.HeaderTraceparent, parent)
	return appendHeader(to, driver.HeaderTracestate, state)
}

func appendTraceMembers(to []byte, e *Envelope) []byte {
	parent, state := traceContext(e.Traceparent, e.Tracestate)
	to = appendText(to, `,"`+nameTraceparent+`":`, parent)
	return appendText(to, `,"`+nameTracestate+`":`, state)
}

// trace takes the trace context from the headers, or from where the form keeps
// it otherwise, and never one half from each.
func (r *reading) trace(e *Envelope, parent, state string) {
	if r.metadata.traceparent != "" {
		parent, state = r.metadata.traceparent, r.metadata.tracestate
	}
	e.Traceparent, e.Tracestate = traceContext(parent, state)
}
