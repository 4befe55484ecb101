// Package testtime stretches the times of tests on a slow or busy machine. All of
// them are derived from one factor, TIDINGS_TEST_SCALE, which is 1 where it is not
// set; scripts/test sets it by what else the machine does.
//
// A test waits for the condition, and not for a time. Two kinds of time remain: how
// long to wait for what is sure to come ([Patience]), which costs nothing where it
// comes, and times that are themselves a part of the test, as a lease whose end is
// waited for ([Scaled]).
package testtime

import (
	"fmt"
	"os"
	"strconv"
	"time"
)

const (
	variableScale    = "TIDINGS_TEST_SCALE"
	variablePatience = "TIDINGS_TEST_PATIENCE"
)

// Scale is the factor, at least 1. It panics when TIDINGS_TEST_SCALE is no number
// from 1 to 100: a test that went on would say something else than was asked.
func Scale() float64 {
	text := os.Getenv(variableScale)
	if text == "" {
		return 1
	}
	scale, err := strconv.ParseFloat(text, 64)
	if err != nil || !(scale >= 1 && scale <= 100) {
		panic(fmt.Sprintf("%s is %q and has to be a number from 1 to 100", variableScale, text))
	}
	return scale
}

// Scaled is a time that is a part of the test: for example of a lease that has to
// last while a test makes two calls, and whose end it waits for.
func Scaled(d time.Duration) time.Duration { return time.Duration(float64(d) * Scale()) }

// Patience is how long to wait for what is sure to come: generous, for it is spent
// only where the test fails. TIDINGS_TEST_PATIENCE replaces d, for runs that expect
// just that (make mutants).
func Patience(d time.Duration) time.Duration {
	if shorter, err := time.ParseDuration(os.Getenv(variablePatience)); err == nil && shorter > 0 {
		d = shorter
	}
	return Scaled(d)
}
