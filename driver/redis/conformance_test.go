package redis

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
)

func TestConformance(t *testing.T) {
	drivertest.Run(t, conformance("redis://"+miniredis.RunT(t).Addr()))
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
		line := &drivertest.Line{}
		return drivertest.Broker{
			Open: func(t testing.TB) driver.Driver {
				d, err := New(Options{Client: clientOption(t, url, line), Namespace: namespace, ReconnectInterval: 200 * time.Millisecond})
				if err != nil {
					t.Fatal(err)
				}
				return d
			},
			PutRaw: func(t testing.TB, m driver.Message) {
				client := plainClient(t, url)
				if err := client.Do(t.Context(), client.B().Publish().Channel(namespace+":"+typeOf(&m)).Message(string(m.Body)).Build()).Error(); err != nil {
					t.Fatal(err)
				}
			},
			Interrupt: line.Interrupt,
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
