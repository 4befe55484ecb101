package tidings

import (
	"time"

	"github.com/tidings-go/tidings/driver"
)

// laneState is where a lane is. A lane exists while it has items or is parked.
//
//	        deliver                  slot free
//	(none) ────────► ready ───────────────────────► running
//	   │               ▲  ▲                          │ │ │
//	   │ deliver in    │  └──── more items ──────────┘ │ │
//	   │ a Publish     │ timer          wait for retry │ │ empty
//	   ▼               └──────── waiting ◄─────────────┘ ▼
//	reserved ──────────────────────────────────► running (none)
//	           its Publish comes for the head
type laneState uint8

const (
	laneIdle     laneState = iota // nothing to do
	laneReserved                  // a Publish will run the head in its goroutine
	laneReady                     // in the ready queue
	laneRunning                   // somebody processes the head, and nobody else may
	laneWaiting                   // a timer makes it ready
)

// lane is the queue of one aggregate in one channel. Guarded by the
// subscription's lock.
type lane struct {
	key   driver.Lane
	state laneState
	head  *item
	tail  *item
	next  *lane // in the ready queue
	// queued: it is in the ready queue, whatever its state is by now.
	queued bool
	timer  Timer
	// generation tells a timer that fires late from the current one.
	generation int
	// counted: the wait ends by itself, so a test clock may advance to its end.
	counted bool

	// blocked: it waits until the parked events of its head's source are known.
	blocked bool

	// guarded: it waits until the outage guard lets it go on.
	guarded bool
	// lacking: its head is one that only another release handles.
	lacking bool
	// standsBack: it waits while a suspect runs alone.
	standsBack bool
	// anew: an operator wants the parked head to be tried; only who runs the lane
	// uses it.
	anew bool
	// admitted: MaxRate has let its head start.
	admitted bool

	parked bool    // earlier events wait in the store
	owner  *source // whose they are
	order  driver.LaneOrder
	due    time.Time // when the parked head is tried again
	// parkedHead is the store's head as an item; only who runs the lane uses it.
	parkedHead *item
}

func (l *lane) push(i *item) {
	i.lane = l
	if l.tail == nil {
		l.head = i
	} else {
		l.tail.next = i
	}
	l.tail = i
}

// pop takes the head away.
func (l *lane) pop() {
	i := l.head
	l.head = i.next
	if l.head == nil {
		l.tail = nil
	}
	i.next = nil
}

// remove takes away every item that drop says, and returns them in order. What
// is processed now stays.
func (l *lane) remove(drop func(*item) bool) []*item {
	var removed []*item
	var kept *item
	i := l.head
	l.head, l.tail = nil, nil
	for i != nil {
		next := i.next
		i.next = nil
		if !i.running && drop(i) {
			i.finished = true
			removed = append(removed, i)
			i = next
			continue
		}
		if kept == nil {
			l.head = i
		} else {
			kept.next = i
		}
		kept, l.tail = i, i
		i = next
	}
	return removed
}

// laneQueue is the first-in-first-out queue of ready lanes.
type laneQueue struct {
	head, tail *lane
}

func (q *laneQueue) push(l *lane) {
	if l.queued {
		return
	}
	l.next, l.queued = nil, true
	if q.tail == nil {
		q.head = l
	} else {
		q.tail.next = l
	}
	q.tail = l
}

// pop returns the first lane that is still ready: one may have been taken by a
// Publish meanwhile.
func (q *laneQueue) pop() *lane {
	for q.head != nil {
		l := q.head
		q.head = l.next
		if q.head == nil {
			q.tail = nil
		}
		l.next, l.queued = nil, false
		if l.state == laneReady {
			return l
		}
	}
	return nil
}
