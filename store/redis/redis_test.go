package redis_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/rueidis"

	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/driver/drivertest"
	"github.com/tidings-go/tidings/driver/redis/redistest"
	"github.com/tidings-go/tidings/store/redis"
	"github.com/tidings-go/tidings/store/storetest"
)

func client(t testing.TB, addresses ...string) rueidis.Client {
	t.Helper()
	c, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: addresses, DisableCache: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// namespace is the same for all calls of one test, and its keys go with it.
func namespace(t *testing.T, c rueidis.Client, servers []string) string {
	t.Helper()
	name := strings.NewReplacer("/", "-", " ", "-", "#", "-").Replace(t.Name()) + "-" + began
	t.Cleanup(func() {
		for _, server := range servers {
			node, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{server}, DisableCache: true, ForceSingleClient: true})
			if err != nil {
				continue // it ended before
			}
			keys, err := node.Do(context.Background(), node.B().Keys().Pattern("*"+name+":*").Build()).AsStrSlice()
			for _, key := range keys {
				err = c.Do(context.Background(), c.B().Del().Key(key).Build()).Error()
			}
			if err != nil {
				t.Logf("cleaning up: %v", err)
			}
			node.Close()
		}
	})
	return name
}

var began = fmt.Sprint(time.Now().UnixNano())

func each(t *testing.T, test func(t *testing.T, servers []string)) {
	t.Run("miniredis", func(t *testing.T) {
		server := miniredis.RunT(t)
		stop, done := make(chan struct{}), make(chan struct{})
		go func() { // its keys expire only when it is told that time passed
			defer close(done)
			ticker := time.NewTicker(50 * time.Millisecond)
			defer ticker.Stop()
			for {
				select {
				case <-ticker.C:
					server.FastForward(50 * time.Millisecond)
				case <-stop:
					return
				}
			}
		}()
		t.Cleanup(func() { close(stop); <-done })
		test(t, []string{server.Addr()})
	})
	t.Run("redis", func(t *testing.T) {
		test(t, []string{strings.TrimPrefix(drivertest.Server(t, "REDIS_URL"), "redis://")})
	})
	t.Run("cluster", func(t *testing.T) {
		var servers []string
		for _, node := range redistest.Cluster(t) {
			servers = append(servers, node.Address())
		}
		test(t, servers)
	})
}

func TestClaims(t *testing.T) {
	each(t, func(t *testing.T, servers []string) {
		c := client(t, servers...)
		storetest.Claims(t, func(t *testing.T) driver.Claims { return redis.NewClaims(c, namespace(t, c, servers)) })
	})
}

func TestDeadLetters(t *testing.T) {
	each(t, func(t *testing.T, servers []string) {
		c := client(t, servers...)
		storetest.DeadLetters(t, func(t *testing.T) driver.DeadLetterStore {
			return redis.NewDeadLetters(c, namespace(t, c, servers))
		})
	})
}

// More than one page of a subscription is read for a filter that Redis does not
// order by.
func TestListBehindThePage(t *testing.T) {
	c := client(t, miniredis.RunT(t).Addr())
	s := redis.NewDeadLetters(c, "")
	for n := range 450 {
		l := driver.DeadLetter{Subscription: "x.y", Type: "a.b.c", ID: fmt.Sprint(n), FailedAt: time.UnixMilli(int64(n + 1))}
		if n == 0 {
			l.Reason, l.Type = "permanent", "rare.one.found"
		}
		if err := s.PutDeadLetter(t.Context(), l); err != nil {
			t.Fatal(err)
		}
	}
	found, err := s.ListDeadLetters(t.Context(), driver.DeadLetterFilter{Type: "rare.one.found"}, "", 10)
	if err != nil || len(found) != 1 {
		t.Errorf("found %d: %v", len(found), err)
	}
}
