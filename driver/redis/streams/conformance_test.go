package streams

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/rueidis"

	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/driver/drivertest"
	"github.com/tidings-go/tidings/driver/redis/internal/wire"
)

func TestConformance(t *testing.T) {
	server := miniredis.RunT(t)
	harness := conformance("redis://" + server.Addr())
	open := harness.NewBroker
	harness.NewBroker = func(t testing.TB) drivertest.Broker {
		broker := open(t)
		plain := broker.Open
		broker.Open = func(t testing.TB) driver.Driver {
			d := plain(t).(*Driver)
			d.waitTime = 20 * time.Millisecond // it does not notice that a waiting client is gone
			return d
		}
		return broker
	}
	drivertest.Run(t, harness)
}

func TestRealConformance(t *testing.T) {
	drivertest.Run(t, conformance(drivertest.Server(t, "REDIS_URL")))
}

func BenchmarkDriver(b *testing.B) {
	url := os.Getenv("REDIS_URL")
	if url == "" {
		url = "redis://" + miniredis.RunT(b).Addr()
	}
	drivertest.RunBenchmarks(b, conformance(url))
}

var namespaces atomic.Int64

func conformance(url string) drivertest.Harness {
	// make mutants shortens it: what it breaks never comes.
	shorter, _ := time.ParseDuration(os.Getenv("TIDINGS_TEST_PATIENCE"))
	return drivertest.Harness{Patience: shorter, NewBroker: func(t testing.TB) drivertest.Broker {
		namespace := fmt.Sprintf("conformance-%d-%d", time.Now().UnixNano(), namespaces.Add(1))
		admin := plainClient(t, url)
		t.Cleanup(func() { removeNamespace(t, admin, namespace) })
		line := &drivertest.Line{}
		return drivertest.Broker{
			Open: func(t testing.TB) driver.Driver {
				d, err := New(Options{Client: clientOption(t, url, line), Namespace: namespace, Shards: 4, LeaseTime: 2 * time.Second})
				if err != nil {
					t.Fatal(err)
				}
				return d
			},
			PutRaw: func(t testing.TB, m driver.Message) {
				d := &Driver{options: Options{Namespace: namespace, Shards: 4}}
				put := admin.B().Xadd().Key(d.streamOf(m.Channel, m.Key)).Id("*").FieldValue()
				fields := wire.Fields(m.Headers, m.Key, m.Body)
				for n := 0; n < len(fields); n += 2 {
					put = put.FieldValue(fields[n], fields[n+1])
				}
				if err := admin.Do(t.Context(), put.Build()).Error(); err != nil {
					t.Fatal(err)
				}
			},
			DeadLetters: func(t testing.TB) []driver.DeadLetter { return deadLetters(t, admin, namespace) },
			Interrupt:   line.Interrupt,
		}
	}}
}

func clientOption(t testing.TB, url string, line *drivertest.Line) rueidis.ClientOption {
	t.Helper()
	option, err := rueidis.ParseURL(url)
	if err != nil {
		t.Fatal(err)
	}
	if line != nil {
		option.DialCtxFn = func(ctx context.Context, address string, _ *net.Dialer, _ *tls.Config) (net.Conn, error) {
			return line.Dial(ctx, "tcp", address)
		}
	}
	return option
}

// plainClient is a client that knows nothing of the driver.
func plainClient(t testing.TB, url string) rueidis.Client {
	t.Helper()
	option := clientOption(t, url, nil)
	option.DisableCache = true
	client, err := rueidis.NewClient(option)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return client
}

func keys(t testing.TB, client rueidis.Client, pattern string) []string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	var found []string
	for cursor := uint64(0); ; {
		page, err := client.Do(ctx, client.B().Scan().Cursor(cursor).Match(pattern).Count(1000).Build()).AsScanEntry()
		if err != nil {
			t.Errorf("SCAN: %v", err)
			return nil
		}
		found = append(found, page.Elements...)
		if cursor = page.Cursor; cursor == 0 {
			return found
		}
	}
}

func removeNamespace(t testing.TB, client rueidis.Client, namespace string) {
	for _, key := range append(keys(t, client, namespace+":*"), keys(t, client, "{"+namespace+":*")...) {
		if err := client.Do(context.Background(), client.B().Del().Key(key).Build()).Error(); err != nil {
			t.Errorf("DEL %s: %v", key, err)
		}
	}
}

// deadLetters reads every stream of dead letters of a namespace, as an operator
// would.
func deadLetters(t testing.TB, client rueidis.Client, namespace string) []driver.DeadLetter {
	t.Helper()
	var letters []driver.DeadLetter
	for _, key := range keys(t, client, namespace+":events:*:dead:*") {
		entries, err := client.Do(t.Context(), client.B().Xrange().Key(key).Start("-").End("+").Build()).ToArray()
		if err != nil {
			t.Fatal(err)
		}
		for n := range entries {
			pair, _ := entries[n].ToArray()
			fields, _ := pair[1].AsStrSlice()
			letter, err := wire.ParseDeadLetter(fields)
			if err != nil {
				t.Error(err)
			}
			letters = append(letters, letter)
		}
	}
	return letters
}
