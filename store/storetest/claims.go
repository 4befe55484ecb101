package storetest

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/tidings-go/tidings/driver"
)

// Claims holds a store to [driver.Claims]. Two calls of open within one test give
// two values over the same state, as two processes would have.
func Claims(t *testing.T, open func(t *testing.T) driver.Claims) {
	t.Helper()
	request := func(key, owner string) driver.ClaimRequest {
		return driver.ClaimRequest{Subscription: "billing.profile", Key: key, Owner: owner, Lease: time.Minute, Digest: 1<<64 - 7}
	}
	claim := func(t *testing.T, c driver.Claims, r driver.ClaimRequest, want driver.ClaimState) driver.ClaimAnswer {
		t.Helper()
		answer, err := c.Claim(t.Context(), r)
		if err != nil {
			t.Fatalf("Claim: %v", err)
		}
		if answer.State != want {
			t.Fatalf("Claim of %s by %s: state %d, want %d", r.Key, r.Owner, answer.State, want)
		}
		return answer
	}
	finish := func(t *testing.T, c driver.Claims, r driver.ClaimRequest) {
		t.Helper()
		if err := c.Finish(t.Context(), r); err != nil {
			t.Fatalf("Finish: %v", err)
		}
	}
	for name, test := range map[string]func(t *testing.T, one, two driver.Claims){
		"handled once": func(t *testing.T, one, two driver.Claims) {
			r := request("k", "first")
			claim(t, one, r, driver.ClaimFresh)
			claim(t, one, r, driver.ClaimFresh) // its lease is renewed
			busy := claim(t, two, request("k", "second"), driver.ClaimBusy)
			if left := time.Until(busy.Until); left <= 0 || left > 2*time.Minute {
				t.Errorf("the lease ends in %v, want about a minute", left)
			}
			finish(t, one, r)
			again := request("k", "second")
			again.Digest = 2
			if done := claim(t, two, again, driver.ClaimDone); done.Digest != r.Digest {
				t.Errorf("digest %d, want that of the first payload, %d", done.Digest, r.Digest)
			}
		},
		"subscriptions and keys are apart": func(t *testing.T, one, _ driver.Claims) {
			claim(t, one, request("k", "first"), driver.ClaimFresh)
			finish(t, one, request("k", "first"))
			other := request("k", "second")
			other.Subscription = "mail.profile"
			claim(t, one, other, driver.ClaimFresh)
			claim(t, one, request("k2", "second"), driver.ClaimFresh)
			claim(t, one, request("k:odd {key}\n", "second"), driver.ClaimFresh)
		},
		"released": func(t *testing.T, one, two driver.Claims) {
			claim(t, one, request("k", "first"), driver.ClaimFresh)
			if err := two.Release(t.Context(), request("k", "second")); err != nil {
				t.Errorf("Release of what another has: %v", err)
			}
			claim(t, two, request("k", "second"), driver.ClaimBusy)
			if err := one.Release(t.Context(), request("k", "first")); err != nil {
				t.Errorf("Release: %v", err)
			}
			if answer := claim(t, two, request("k", "second"), driver.ClaimFresh); answer.Crashes != 0 {
				t.Errorf("%d crashes", answer.Crashes)
			}
			if err := one.Release(t.Context(), request("never claimed", "first")); err != nil {
				t.Errorf("Release of nothing: %v", err)
			}
		},
		"a crashed owner": func(t *testing.T, one, two driver.Claims) {
			short := request("k", "crashed")
			short.Lease = leaseTime()
			claim(t, one, short, driver.ClaimFresh)
			last := short
			for crashes := 1; crashes <= 4; crashes++ { // the last two ran alone
				last.Owner = fmt.Sprint("owner ", crashes)
				last.Counting = driver.CountFirst
				var answer driver.ClaimAnswer
				eventually(t, "its lease ends", func() bool {
					var err error
					if answer, err = two.Claim(t.Context(), last); err != nil {
						t.Fatal(err)
					}
					return answer.State == driver.ClaimFresh
				})
				if answer.Crashes != crashes || answer.Alone != max(0, crashes-3) {
					t.Errorf("%d crashes, %d of them alone, want %d", answer.Crashes, answer.Alone, crashes)
				}
				last.Counting = driver.CountBeside
				if crashes >= 3 {
					last.Counting = driver.CountAlone
				}
				if answer := claim(t, two, last, driver.ClaimFresh); answer.Crashes != crashes || answer.Alone != max(0, crashes-3) {
					t.Errorf("when it is started: %+v, want the same counts", answer)
				}
			}
			if err := one.Finish(t.Context(), short); !errors.Is(err, driver.ErrNotClaimed) {
				t.Errorf("Finish by the one that was too slow: %v, want ErrNotClaimed", err)
			}
			if err := one.Release(t.Context(), short); err != nil {
				t.Errorf("Release by the one that was too slow: %v", err)
			}
			finish(t, two, last)
			claim(t, one, short, driver.ClaimDone)
		},
		"only starts count": func(t *testing.T, one, two driver.Claims) {
			short := request("k", "crashed")
			short.Lease = leaseTime()
			claim(t, one, short, driver.ClaimFresh)
			for n := range 4 { // claimed again and again, and not started
				next := short
				next.Owner = fmt.Sprint("owner ", n)
				eventually(t, "its lease ends", func() bool {
					answer, err := two.Claim(t.Context(), next)
					if err != nil {
						t.Fatal(err)
					}
					if answer.State == driver.ClaimFresh && answer.Crashes != 1 {
						t.Errorf("%d crashes, there was one", answer.Crashes)
					}
					return answer.State == driver.ClaimFresh
				})
				if n%2 == 0 {
					next.Unstarted = true
					if err := two.Release(t.Context(), next); err != nil {
						t.Errorf("Release: %v", err)
					}
				}
			}
			last := request("k", "last")
			eventually(t, "its lease ends", func() bool {
				answer, err := one.Claim(t.Context(), last)
				if err != nil {
					t.Fatal(err)
				}
				return answer.State == driver.ClaimFresh
			})
			if err := one.Release(t.Context(), last); err != nil {
				t.Errorf("Release: %v", err)
			}
			if answer := claim(t, two, request("k", "after"), driver.ClaimFresh); answer.Crashes != 0 {
				t.Errorf("released, it has %d crashes", answer.Crashes)
			}
		},
		"a claim of an older epoch is not waited for": func(t *testing.T, one, two driver.Claims) {
			of := func(owner, source string, epoch int64) driver.ClaimRequest {
				r := request("k", owner)
				r.Source, r.Epoch = source, epoch
				return r
			}
			claim(t, one, of("first", "topic/0", 2), driver.ClaimFresh)
			claim(t, two, of("other source", "topic/1", 9), driver.ClaimBusy)
			claim(t, two, of("no source", "", 0), driver.ClaimBusy)
			claim(t, two, of("same epoch", "topic/0", 2), driver.ClaimBusy)
			claim(t, two, of("older epoch", "topic/0", 1), driver.ClaimBusy)
			if answer := claim(t, two, of("second", "topic/0", 3), driver.ClaimFresh); answer.Crashes != 1 {
				t.Errorf("%d crashes, want 1", answer.Crashes)
			}
			claim(t, one, of("first", "topic/0", 2), driver.ClaimBusy)
			claim(t, one, of("third", "topic/0", 4), driver.ClaimFresh)
		},
		"epochs": func(t *testing.T, one, two driver.Claims) {
			first, ok := one.(driver.ClaimEpochs)
			if !ok {
				return // of one process: its epochs are the engine's
			}
			second, _ := two.(driver.ClaimEpochs)
			for want, epochs := range []driver.ClaimEpochs{first, second, first} {
				if epoch, err := epochs.AdvanceClaims(t.Context(), "billing.profile", "topic/0"); err != nil || epoch != int64(want+1) {
					t.Errorf("epoch %d, want %d: %v", epoch, want+1, err)
				}
			}
			if epoch, err := first.AdvanceClaims(t.Context(), "billing.profile", "topic/1"); err != nil || epoch != 1 {
				t.Errorf("epoch %d of another source, want 1: %v", epoch, err)
			}
			held, next := request("k", "first"), request("k", "second")
			held.Source, held.Epoch = "topic/0", 1
			next.Source, next.Epoch = "topic/0", 2
			claim(t, one, held, driver.ClaimFresh)
			if err := second.DetachClaim(t.Context(), next); err != nil {
				t.Errorf("DetachClaim of what another has: %v", err)
			}
			if err := first.DetachClaim(t.Context(), held); err != nil {
				t.Errorf("DetachClaim: %v", err)
			}
			claim(t, two, next, driver.ClaimBusy)
			finish(t, one, held)
		},
		"done only after success": func(t *testing.T, one, _ driver.Claims) {
			if err := one.Finish(t.Context(), request("k", "nobody")); !errors.Is(err, driver.ErrNotClaimed) {
				t.Errorf("Finish of what nobody claimed: %v, want ErrNotClaimed", err)
			}
			claim(t, one, request("k", "first"), driver.ClaimFresh)
		},
		"forgotten": func(t *testing.T, one, _ driver.Claims) {
			r := request("k", "first")
			r.Keep = 5 * leaseTime() // it has to last until it was asked for once
			claim(t, one, r, driver.ClaimFresh)
			finish(t, one, r)
			claim(t, one, request("k", "second"), driver.ClaimDone)
			eventually(t, "the key is forgotten", func() bool {
				answer, err := one.Claim(t.Context(), request("k", "second"))
				if err != nil {
					t.Fatal(err)
				}
				return answer.State == driver.ClaimFresh
			})
		},
		"many at once": func(t *testing.T, one, two driver.Claims) {
			const owners, keys = 8, 25
			var all sync.WaitGroup
			var mu sync.Mutex
			fresh := make(map[string]int)
			for n := range owners {
				c := one
				if n%2 == 1 {
					c = two
				}
				all.Go(func() {
					for k := range keys {
						r := request(fmt.Sprint("k", k), fmt.Sprint("owner ", n))
						answer, err := c.Claim(t.Context(), r)
						if err != nil {
							t.Errorf("Claim: %v", err)
							return
						}
						if answer.State == driver.ClaimFresh {
							mu.Lock()
							fresh[r.Key]++
							mu.Unlock()
							if err := c.Finish(t.Context(), r); err != nil {
								t.Errorf("Finish: %v", err)
							}
						}
					}
				})
			}
			all.Wait()
			for k := range keys {
				if n := fresh[fmt.Sprint("k", k)]; n != 1 {
					t.Errorf("key %d was claimed %d times", k, n)
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) { test(t, open(t), open(t)) })
	}
}
