package tidings_test

import (
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/driver/memory"
)

// Tests of this name, here and in the packages of drivers, are about defects that
// were measured in other libraries: docs/peer-defects.md lists them.

func TestPeerDefect01OrderInMemory(t *testing.T) {
	for name, options := range map[string]*memory.Options{"synchronous": {}, "async": {Async: true}} {
		t.Run(name, func(t *testing.T) {
			b := tidings.New(memory.New(options), &tidings.Options{Logger: discard()})
			var mu sync.Mutex
			last, inversions, handled := -1, 0, 0
			subscribe(t, b, "watch", nil, numberChosen, func(_ context.Context, e tidings.Event[numberPayload]) error {
				mu.Lock()
				defer mu.Unlock()
				if e.Payload().Number < last {
					inversions++
				}
				last = e.Payload().Number
				handled++
				return nil
			})
			stop := start(t, b)
			for n := range 2_000 {
				if err := b.Publish(t.Context(), numberChosen.New("a", numberPayload{n})); err != nil {
					t.Fatal(err)
				}
			}
			stop() // finishes all of it
			if inversions > 0 || handled != 2_000 {
				t.Errorf("%d of 2000 handled, %d inversions", handled, inversions)
			}
		})
	}
}

func TestPeerDefect03AFailureIsNoHotLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := tidings.New(memory.New(&memory.Options{Async: true}), &tidings.Options{Logger: discard(), DrainTimeout: time.Second})
		var calls atomic.Int64
		subscribe(t, b, "never", &tidings.SubscribeOptions{OnExhausted: tidings.Block}, numberChosen, func(context.Context, tidings.Event[numberPayload]) error {
			calls.Add(1)
			return errors.New("no")
		})
		stop := start(t, b)
		if err := b.Publish(t.Context(), numberChosen.New("a", numberPayload{1})); err != nil {
			t.Fatal(err)
		}
		pass(time.Second) // 200 ms and 400 ms, each with 20 % of jitter
		if n := calls.Load(); n < 2 || n > 3 {
			t.Errorf("a handler that always fails was called %d times in a second", n)
		}
		stop()
	})
}

// An event counts as handled when its handler has succeeded, and not before: what
// fails is delivered again and handled, with a store of claims and without, and
// also when it is another delivery that the broker makes.
func TestPeerDefect04AFailedEventIsNoDuplicate(t *testing.T) {
	for name, claims := range map[string]driver.Claims{"process-local": nil, "shared": &sharedClaims{states: map[string]string{}}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := newQueue(true)
				b := tidings.New(d, &tidings.Options{Logger: discard(), Claims: claims, RedeliveryHorizon: time.Hour})
				calls, handled := 0, 0
				subscribe(t, b, "work", nil, numberChosen, func(context.Context, tidings.Event[numberPayload]) error {
					if calls++; calls == 1 {
						return tidings.RetryAfter(errors.New("not now"), time.Hour) // the broker takes it back for so long
					}
					handled++
					return nil
				})
				stop := start(t, b)
				if err := b.Publish(t.Context(), numbered("a", 1)); err != nil {
					t.Fatal(err)
				}
				pass(2 * time.Hour)
				synctest.Wait()
				if calls != 2 || handled != 1 || d.left() != 0 {
					t.Errorf("%d calls, %d handled, %d left", calls, handled, d.left())
				}
				stop()
			})
		})
	}
}

// What an event is never depends on its payload: equal ones of different events are
// handled, all of them.
func TestPeerDefect05PayloadsAreNoIdentity(t *testing.T) {
	b := tidings.New(memory.New(nil), &tidings.Options{Logger: discard()})
	handled := 0
	subscribe(t, b, "all", nil, numberChosen, func(context.Context, tidings.Event[numberPayload]) error {
		handled++
		return nil
	})
	stop := start(t, b)
	const events = 20_000
	for n := range events {
		if err := b.Publish(t.Context(), numberChosen.New("a", numberPayload{n % 100})); err != nil {
			t.Fatal(err)
		}
	}
	stop()
	if handled != events {
		t.Errorf("%d of %d events were handled", handled, events)
	}
	// The digest that tells whether a suppressed duplicate said something else.
	seen := make(map[uint64]int)
	for n := range 200_000 {
		digest := tidings.DigestOf(numberChosen.New("a", numberPayload{n}, tidings.WithID("1")))
		if other, taken := seen[digest]; taken {
			t.Fatalf("%d and %d have one digest", other, n)
		}
		seen[digest] = n
	}
}

// waits are the times between the calls of a handler that fails five times, and
// what observers were told that they would be.
func waits(t *testing.T, options *tidings.SubscribeOptions, observed bool) (measured, said []time.Duration) {
	t.Helper()
	var mu sync.Mutex
	o := &tidings.Options{Logger: discard()}
	if observed {
		o.Observers = []tidings.Observer{observerFunc(func(o tidings.Observation) {
			mu.Lock()
			defer mu.Unlock()
			if o.Kind == tidings.Retried {
				said = append(said, o.Wait)
			}
		})}
	}
	b := tidings.New(memory.New(&memory.Options{Async: true}), o)
	var last time.Time
	subscribe(t, b, "fails", options, numberChosen, func(context.Context, tidings.Event[numberPayload]) error {
		now := time.Now()
		if !last.IsZero() {
			measured = append(measured, now.Sub(last))
		}
		last = now
		return errors.New("no")
	})
	stop := start(t, b)
	if err := b.Publish(t.Context(), numberChosen.New("a", numberPayload{1})); err != nil {
		t.Fatal(err)
	}
	pass(10 * time.Minute)
	stop()
	return measured, said
}

func TestPeerDefect06BackoffGrows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		got, _ := waits(t, &tidings.SubscribeOptions{MaxAttempts: 5, Backoff: tidings.Backoff{Initial: time.Second, Multiplier: 1.5, Jitter: -1}}, false)
		if fmt.Sprint(got) != "[1s 1.5s 2.25s 3.375s]" {
			t.Errorf("waited %v", got)
		}
	})
}

func TestPeerDefect07AnObserverChangesNoBackoff(t *testing.T) {
	options := func() *tidings.SubscribeOptions {
		return &tidings.SubscribeOptions{MaxAttempts: 5, Backoff: tidings.Backoff{Initial: 20 * time.Millisecond, Jitter: -1}}
	}
	synctest.Test(t, func(t *testing.T) {
		alone, _ := waits(t, options(), false)
		watched, said := waits(t, options(), true)
		if want := "[20ms 40ms 80ms 160ms]"; fmt.Sprint(alone) != want || fmt.Sprint(watched) != want || fmt.Sprint(said) != want {
			t.Errorf("alone %v, observed %v, observers were told %v", alone, watched, said)
		}
	})
}

// Each option of retrying means something by itself: leaving the others out turns
// nothing off.
func TestPeerDefect08EachRetryOptionWorksAlone(t *testing.T) {
	for name, options := range map[string]*tidings.SubscribeOptions{
		"no options": nil, "none set": {}, "only Max": {Backoff: tidings.Backoff{Max: time.Second}}, "only Timeout": {Timeout: time.Second}, "only Multiplier": {Backoff: tidings.Backoff{Multiplier: 3}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				if got, _ := waits(t, options, false); len(got) != 9 {
					t.Errorf("%d attempts, want 10", len(got)+1)
				}
			})
		})
	}
}

// The end of Run waits for handlers that run before it cancels anything.
func TestPeerDefect09TheEndCancelsNoHandler(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := tidings.New(memory.New(&memory.Options{Async: true}), &tidings.Options{Logger: discard(), DrainTimeout: time.Minute})
		var cancelled, finished bool
		subscribe(t, b, "slow", nil, numberChosen, func(ctx context.Context, _ tidings.Event[numberPayload]) error {
			pass(20 * time.Second)
			cancelled, finished = ctx.Err() != nil, true
			return nil
		})
		stop := start(t, b)
		if err := b.Publish(t.Context(), numberChosen.New("a", numberPayload{1})); err != nil {
			t.Fatal(err)
		}
		pass(time.Second)
		stop()
		if cancelled || !finished {
			t.Errorf("cancelled %v, finished %v", cancelled, finished)
		}
	})
}

// The page names tests; each of them is there.
func TestPeerDefectsAreTested(t *testing.T) {
	page, err := os.ReadFile("docs/peer-defects.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := regexp.MustCompile(`(?m)^\| (\d+) \|.*$`).FindAllStringSubmatch(string(page), -1)
	numbers := make(map[string]bool)
	for _, row := range rows {
		numbers[row[1]] = true
		tests := regexp.MustCompile("`(Test\\w+)` \\(`([^`]+)`\\)").FindAllStringSubmatch(row[0], -1)
		if len(tests) == 0 {
			t.Errorf("number %s names no test: %s", row[1], row[0])
		}
		for _, test := range tests {
			if !testExists(t, filepath.FromSlash(test[2]), test[1]) {
				t.Errorf("number %s: there is no %s in %s", row[1], test[1], test[2])
			}
		}
	}
	for _, number := range []int{1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 14, 15, 16, 17, 18, 19} {
		if !numbers[fmt.Sprint(number)] {
			t.Errorf("number %d is not on the page", number)
		}
	}
}

func testExists(t *testing.T, folder, name string) bool {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(folder, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, declared := range file.Decls {
			if f, ok := declared.(*ast.FuncDecl); ok && f.Name.Name == name {
				return true
			}
		}
	}
	return false
}
