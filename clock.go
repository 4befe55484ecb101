package tidings

import "time"

// Clock is where the engine gets the time from. The default is the system's;
// package tidingstest has one that a test advances. It may be called from
// several goroutines at once.
//
// A clock that also has the methods
//
//	LaneActive(delta int)  // work that runs, or could run now
//	LaneWaiting(delta int) // lanes that wait for a timer
//
// is told how many of each there are, so that it knows when nothing is left to
// do but wait.
type Clock interface {
	Now() time.Time
	// AfterFunc calls f in a goroutine of its own once d has passed.
	AfterFunc(d time.Duration, f func()) Timer
}

// Timer is a call that a [Clock] will make.
type Timer interface {
	// Stop prevents the call and reports whether it did.
	Stop() bool
}

type systemClock struct{}

func (systemClock) Now() time.Time { return time.Now() }

func (systemClock) AfterFunc(d time.Duration, f func()) Timer { return time.AfterFunc(d, f) }

// tally is what a clock is told about the engine's work.
type tally interface {
	LaneActive(delta int)
	LaneWaiting(delta int)
}

type noTally struct{}

func (noTally) LaneActive(int)  {}
func (noTally) LaneWaiting(int) {}
