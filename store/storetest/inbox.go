package storetest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/inbox"
)

func request(owner string) driver.ClaimRequest {
	return driver.ClaimRequest{Subscription: "x.y", Key: "a.b.c\nk1", Owner: owner, Lease: time.Minute, Digest: 1<<64 - 7}
}

// Inbox holds a store to [inbox.Store]. open makes an empty database.
func Inbox[TX any](t *testing.T, open func(t *testing.T) Database[TX]) {
	t.Helper()
	for name, test := range map[string]func(t *testing.T, d Database[TX]){
		"claim and effect together": claimAndEffect[TX],
		"claimed by one":            claimedByOne[TX],
		"forgotten":                 claimForgotten[TX],
		"the engine's claims":       sharedClaims[TX],
		"fenced":                    fenced[TX],
		"fenced while it runs":      fencedMeanwhile[TX],
		"starts":                    starts[TX],
		"a panic rolls back":        panicRollsBack[TX],
	} {
		t.Run(name, func(t *testing.T) { test(t, open(t)) })
	}
}

// attempt makes one effect under a claim.
func attempt[TX any](t *testing.T, d Database[TX], s SQL[TX], r driver.ClaimRequest, result error) (answer driver.ClaimAnswer, err error) {
	t.Helper()
	err = s.Transact(t.Context(), func(ctx context.Context, tx TX) error {
		var err error
		if answer, err = s.Claim(ctx, tx, r); err != nil || answer.State != driver.ClaimFresh {
			return err
		}
		if err := d.Exec(ctx, tx, "INSERT INTO effects (name) VALUES ('one')"); err != nil {
			return err
		}
		return result
	})
	return answer, err
}

func claimAndEffect[TX any](t *testing.T, d Database[TX]) {
	s, no := d.Open(t), errors.New("no")
	if _, err := attempt(t, d, s, request("first"), no); !errors.Is(err, no) || d.Effects(t) != 0 {
		t.Fatalf("%d effects, %v", d.Effects(t), err)
	}
	if claimed, err := s.Claimed(t.Context(), "x.y", request("").Key, "first"); claimed || err != nil {
		t.Errorf("claimed after a rollback: %v %v", claimed, err)
	}
	if answer, err := attempt(t, d, s, request("first"), nil); err != nil || answer.State != driver.ClaimFresh {
		t.Fatalf("%+v %v", answer, err)
	}
	for _, owner := range []string{"second", "first"} { // the first too: its commit may have seemed to fail
		r := request(owner)
		r.Digest = 5
		if answer, err := attempt(t, d, d.Open(t), r, nil); err != nil || answer.State != driver.ClaimDone || answer.Digest != request("").Digest {
			t.Errorf("%s: %+v %v", owner, answer, err)
		}
	}
	for owner, want := range map[string]bool{"first": true, "second": false} {
		if claimed, err := s.Claimed(t.Context(), "x.y", request("").Key, owner); claimed != want || err != nil {
			t.Errorf("claimed by %s: %v %v", owner, claimed, err)
		}
	}
	if d.Effects(t) != 1 {
		t.Errorf("%d effects", d.Effects(t))
	}
}

func claimedByOne[TX any](t *testing.T, d Database[TX]) {
	var all sync.WaitGroup
	var fresh atomic.Int64
	for n := range 8 {
		s := d.Open(t)
		all.Go(func() {
			for range 5 { // a database may refuse one of two that are in each other's way
				answer, err := attempt(t, d, s, request(fmt.Sprint("owner ", n)), nil)
				if err != nil {
					continue
				}
				if answer.State == driver.ClaimFresh {
					fresh.Add(1)
				}
				return
			}
			t.Error("no transaction was committed")
		})
	}
	all.Wait()
	if fresh.Load() != 1 || d.Effects(t) != 1 {
		t.Errorf("%d had the claim, %d effects", fresh.Load(), d.Effects(t))
	}
}

func claimForgotten[TX any](t *testing.T, d Database[TX]) {
	s, r := d.Open(t), request("first")
	r.Keep = leaseTime()
	if _, err := attempt(t, d, s, r, nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the key is forgotten", func() bool {
		answer, err := attempt(t, d, s, request("second"), nil)
		if err != nil {
			t.Fatal(err)
		}
		return answer.State == driver.ClaimFresh
	})
}

// A subscription that begins to use an inbox knows what it has handled before.
func sharedClaims[TX any](t *testing.T, d Database[TX]) {
	s := d.Open(t)
	has, ok := s.(interface{ Claims() driver.Claims })
	if !ok {
		t.Fatal("the store has no claims for the engine")
	}
	claims := has.Claims()
	if _, err := claims.Claim(t.Context(), request("engine")); err != nil {
		t.Fatal(err)
	}
	if err := claims.Finish(t.Context(), request("engine")); err != nil {
		t.Fatal(err)
	}
	if answer, err := attempt(t, d, s, request("inbox"), nil); err != nil || answer.State != driver.ClaimDone {
		t.Errorf("%+v %v", answer, err)
	}
}

func fenced[TX any](t *testing.T, d Database[TX]) {
	s, other := d.Open(t), d.Open(t)
	epoch, err := s.Advance(t.Context(), "x.y", "topic/0")
	if err != nil {
		t.Fatal(err)
	}
	check := func(source string, epoch int64) error {
		return s.Transact(t.Context(), func(ctx context.Context, tx TX) error { return s.Fence(ctx, tx, "x.y", source, epoch) })
	}
	if err := check("topic/0", epoch); err != nil {
		t.Errorf("its own epoch: %v", err)
	}
	next, err := other.Advance(t.Context(), "x.y", "topic/0")
	if err != nil || next <= epoch {
		t.Fatalf("epoch %d after %d: %v", next, epoch, err)
	}
	if err := check("topic/0", epoch); !errors.Is(err, inbox.ErrFenced) {
		t.Errorf("an old epoch: %v", err)
	}
	if err := check("topic/0", next); err != nil {
		t.Errorf("the new epoch: %v", err)
	}
	if _, err := other.Advance(t.Context(), "x.y", "topic/1"); err != nil {
		t.Fatal(err)
	}
	if err := check("topic/0", next); err != nil {
		t.Errorf("after another source advanced: %v", err)
	}
}

// Whoever takes a source over waits for the transactions that have looked.
func fencedMeanwhile[TX any](t *testing.T, d Database[TX]) {
	s, other := d.Open(t), d.Open(t)
	epoch, err := s.Advance(t.Context(), "x.y", "topic/0")
	if err != nil {
		t.Fatal(err)
	}
	looked, over := make(chan struct{}), make(chan struct{})
	var committed atomic.Bool
	go func() {
		defer close(over)
		<-looked
		if _, err := other.Advance(t.Context(), "x.y", "topic/0"); err != nil {
			t.Errorf("Advance: %v", err)
		}
		if !committed.Load() {
			t.Error("the source was taken over while a transaction of the owner before was open")
		}
	}()
	err = s.Transact(t.Context(), func(ctx context.Context, tx TX) error {
		if err := s.Fence(ctx, tx, "x.y", "topic/0", epoch); err != nil {
			return err
		}
		close(looked)
		select {
		case <-over:
		case <-time.After(leaseTime()):
		}
		committed.Store(true)
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	<-over
}

func starts[TX any](t *testing.T, d Database[TX]) {
	s := d.Open(t)
	start := func(subscription string, counting driver.Counting, wantCrashes, wantAlone int) {
		t.Helper()
		crashes, alone, err := s.Start(t.Context(), subscription, "k", counting)
		if err != nil || crashes != wantCrashes || alone != wantAlone {
			t.Errorf("%d starts, %d alone, want %d and %d: %v", crashes, alone, wantCrashes, wantAlone, err)
		}
	}
	start("x.y", driver.CountFirst, 0, 0)
	start("x.y", driver.CountFirst, 1, 0)
	start("x.y", driver.CountFirst, 1, 0) // which was not counted
	start("x.y", driver.CountBeside, 1, 0)
	start("x.y", driver.CountAlone, 2, 0)
	start("x.y", driver.CountAlone, 3, 1)
	start("x.y", driver.CountFirst, 4, 2)
	start("x.z", driver.CountAlone, 0, 0)
	start("x.z", driver.CountFirst, 1, 1)
	for range 2 {
		if err := s.End(t.Context(), "x.y", "k"); err != nil {
			t.Errorf("End: %v", err)
		}
	}
	start("x.y", driver.CountFirst, 0, 0)
}

func panicRollsBack[TX any](t *testing.T, d Database[TX]) {
	s := d.Open(t)
	func() {
		defer func() {
			if recover() == nil {
				t.Error("the panic was swallowed")
			}
		}()
		_ = s.Transact(t.Context(), func(ctx context.Context, tx TX) error {
			if err := d.Exec(ctx, tx, "INSERT INTO effects (name) VALUES ('one')"); err != nil {
				t.Error(err)
			}
			panic("the handler")
		})
	}()
	if _, err := attempt(t, d, s, request("next"), nil); err != nil || d.Effects(t) != 1 {
		t.Errorf("%d effects, %v", d.Effects(t), err)
	}
}

// IdleOwner holds a store to what it does about a transaction of a former owner in
// which nothing happens any more: the next owner does not wait for it, and it commits
// nothing.
func IdleOwner[TX any](t *testing.T, open func(t *testing.T) Database[TX]) {
	t.Helper()
	d := open(t)
	former, next := d.Open(t), d.Open(t)
	epoch, err := former.Advance(t.Context(), "x.y", "source")
	if err != nil {
		t.Fatal(err)
	}
	idle, over, ended := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- former.Transact(t.Context(), func(ctx context.Context, tx TX) error {
			if err := former.Fence(ctx, tx, "x.y", "source", epoch); err != nil {
				return err
			}
			if err := d.Exec(ctx, tx, "INSERT INTO effects (name) VALUES ('void')"); err != nil {
				return err
			}
			close(idle)
			<-over // as in a process that has died
			return nil
		})
	}()
	select {
	case <-idle:
	case err := <-ended:
		t.Fatal(err)
	}
	limited, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	now, err := next.Advance(limited, "x.y", "source")
	close(over)
	if err != nil || now != epoch+1 {
		t.Errorf("the next owner has epoch %d after %d: %v", now, epoch, err)
	}
	if err := <-ended; err == nil || d.Effects(t) != 0 {
		t.Errorf("the former owner's transaction: %v, %d effects", err, d.Effects(t))
	}
}
