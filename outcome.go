package tidings

import "time"

// What becomes of an event after an attempt is decided here and nowhere else. A live
// event, the head of a parked lane and a dead letter that is tried again differ in
// what the policy says of them, not in the way they go.

// standing is what an item is to its subscription.
type standing uint8

const (
	liveEvent      standing = iota // the broker has it, and waits to be told
	parkedHead                     // it lies in the store of parked events, and its lane behind it
	redrivenLetter                 // it was a dead letter
	standings
)

var standingNames = [...]string{"live", "parked head", "redriven letter"}

func (s standing) String() string { return standingNames[s] }

// ending is how an attempt ended, or what kept it from being made.
type ending uint8

const (
	endHandled     ending = iota // the handler returned nil
	endFailed                    // an error, a panic, the end of its goroutine, its timeout
	endPermanent                 // Permanent
	endLater                     // RetryAfter
	endDuplicate                 // ErrDuplicate of a reaction with a claim of its own
	endFenced                    // ErrFenced of an event with a fence
	endStopped                   // ErrLost or ErrStopping: it was told to stop
	endUnavailable               // ErrUnavailable of a reaction with a claim of its own
	endCrashed                   // ErrCrashed
	endStore                     // a store of the engine did not answer, before the handler or after
	endUndecodable               // the contract cannot read its payload
)

// question is all that an outcome depends on.
type question struct {
	ending   ending
	standing standing
	policy   Policy
	last     bool // this was the last of MaxAttempts
	outage   bool // the outage breaker has tripped: it is not the event that fails
}

// act is what is done with the item.
type act uint8

const (
	actSettle     act = iota // it is finished: the broker, or the store it came from, is told
	actRetry                 // it stays the head of its lane
	actPark                  // it is put into the store of parked events, and its lane with it
	actDeadLetter            // it becomes a dead letter, or one again
)

var actNames = [...]string{"settle", "retry", "park", "dead letter"}

func (a act) String() string { return actNames[a] }

// pause is how long a retry waits.
type pause uint8

const (
	pauseNone    pause = iota
	pauseFirst         // Backoff.Initial
	pauseBackoff       // Backoff, by the attempts
	pauseGiven         // what RetryAfter says
	pauseLongest       // Backoff.Max, until a person or a new release ends it
	pausePark          // ParkBackoff, by the attempts
	pauseStore         // Backoff, as after three attempts
	pauseOutage        // what the breaker waits between probes, at first
)

var pauseNames = [...]string{"", "Backoff.Initial", "Backoff", "as it says", "Backoff.Max, without end", "ParkBackoff", "Backoff of the third attempt", "the breaker's"}

func (p pause) String() string { return pauseNames[p] }

// outcome is what becomes of an item.
type outcome struct {
	act    act
	pause  pause  // of a retry
	counts bool   // an attempt is used
	reason string // of what is given up, and of a retry that needs one
	kind   Kind   // what observers are told
	why    string // the reason for the rule, for docs/design.md
}

// decide is the one function that turns the end of an attempt into what becomes of
// the event. It is pure.
func decide(q question) outcome {
	switch q.ending {
	case endHandled:
		return outcome{act: actSettle, kind: Handled, why: "it is handled"}
	case endDuplicate:
		return outcome{act: actSettle, kind: Deduplicated, why: "it was handled before"}
	case endFenced, endStopped:
		return outcome{act: actRetry, pause: pauseFirst, kind: Discarded, why: "another instance owns it by now, or it was told to stop: that says nothing about the event"}
	case endUnavailable, endStore:
		return outcome{act: actRetry, pause: pauseStore, kind: StoreFailed, why: "a store does not answer: that says nothing about the event, and its lane goes on soon after the store is back"}
	case endUndecodable:
		return outcome{act: actDeadLetter, counts: true, reason: reasonUndecodable, kind: DeadLettered, why: "no retry and no waiting makes it readable"}
	case endFailed, endLater:
		if q.outage && q.standing != redrivenLetter {
			return outcome{act: actRetry, pause: pauseOutage, reason: reasonGuarded, kind: Retried, why: "nearly everything fails, so it is what the handlers need and not the event"}
		}
	}
	reason, over := givenUp(q)
	if !over {
		wait := pauseBackoff
		if q.ending == endLater {
			wait = pauseGiven
		}
		return outcome{act: actRetry, pause: wait, counts: true, kind: Retried, why: "attempts are left"}
	}
	return exhausted(q, reason)
}

// givenUp reports whether the policy is asked, and why.
func givenUp(q question) (reason string, over bool) {
	switch q.ending {
	case endCrashed:
		return reasonCrashed, true
	case endPermanent:
		return reasonPermanent, true
	}
	return reasonExhausted, q.last
}

// exhausted is what the policy says of an event that is not tried again as before.
func exhausted(q question, reason string) outcome {
	o := outcome{act: actDeadLetter, counts: true, reason: reason, kind: DeadLettered}
	switch {
	case q.standing == redrivenLetter:
		o.why = "a letter that is tried again is one still: an operator sees it where it was"
	case q.policy == DeadLetter && q.standing == parkedHead:
		o.why = "it was parked behind an event that could not be read; the policy is the same, and its lane goes on"
	case q.policy == DeadLetter:
		o.why = "the policy: its lane goes on without it"
	case q.policy == Block:
		o.act, o.pause, o.kind = actRetry, pauseLongest, Blocked
		o.why = "the policy: it is tried until it succeeds, and its lane waits"
	case q.standing == parkedHead:
		o.act, o.pause, o.kind = actRetry, pausePark, Retried
		if q.ending == endLater {
			o.pause = pauseGiven
		}
		o.why = "the policy: it stays parked and is tried now and then, with its lane behind it"
	default:
		o.act, o.kind = actPark, Parked
		o.why = "the policy: it is parked, and its lane behind it, in order"
	}
	return o
}

// Why an event was given up, is held or is retried as it is.
const (
	reasonExhausted   = "exhausted"
	reasonPermanent   = "permanent"
	reasonCrashed     = "crashed"
	reasonUndecodable = "undecodable"
	reasonGuarded     = "guarded"
)

// wait is the time of a pause.
func (s *subscription) pauseOf(o outcome, attempts int, given time.Duration) time.Duration {
	switch o.pause {
	case pauseFirst:
		return s.options.Backoff.Initial
	case pauseBackoff:
		return s.options.Backoff.wait(attempts)
	case pauseGiven:
		return max(given, time.Millisecond)
	case pauseLongest:
		return s.options.Backoff.Max
	case pausePark:
		beyond := attempts
		if o.reason == reasonExhausted {
			beyond = attempts - s.options.MaxAttempts + 1
		}
		return s.options.ParkBackoff.wait(max(beyond, 1))
	case pauseStore:
		return s.options.Backoff.wait(3)
	case pauseOutage:
		return guardBackoff.Initial
	}
	return 0
}
