package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/rueidis"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/driver/kafka"
	"github.com/tidings-go/tidings/driver/memory"
	"github.com/tidings-go/tidings/driver/redis/streams"
	"github.com/tidings-go/tidings/driver/sqldb"
	"github.com/tidings-go/tidings/store/postgres"
)

// line is what lies between a driver and its broker, and can be cut.
type line struct {
	mu    sync.Mutex
	isCut bool
	open  []net.Conn
}

func (l *line) dial(ctx context.Context, network, address string) (net.Conn, error) {
	l.mu.Lock()
	isCut := l.isCut
	l.mu.Unlock()
	if isCut {
		return nil, &net.OpError{Op: "dial", Net: network, Err: errors.New("connection refused")}
	}
	c, err := (&net.Dialer{}).DialContext(ctx, network, address)
	if err == nil {
		l.mu.Lock()
		l.open = append(l.open, c)
		l.mu.Unlock()
	}
	return c, err
}

func (l *line) cut(isCut bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.isCut = isCut
	if isCut {
		for _, c := range l.open {
			_ = c.Close()
		}
		l.open = nil
	}
}

func inMemory(context.Context) (*broker, error) {
	return &broker{
		name: "in-memory",
		open: func(context.Context, *line) (driver.Driver, error) {
			return memory.New(&memory.Options{Async: true}), nil
		},
		without: map[string]string{"dead broker": "there is no broker"},
	}, nil
}

func onKafka(context.Context) (*broker, error) {
	if os.Getenv("KAFKA_BROKERS") == "" {
		return nil, nil
	}
	addresses := strings.Split(os.Getenv("KAFKA_BROKERS"), ",")
	namespace := fmt.Sprintf("bounded-%d", time.Now().UnixNano())
	return &broker{
		name: "kafka",
		peak: 1536 * mebibytes, // eight partitions of 20 000 events, and as much garbage
		left: 192 * mebibytes,
		open: func(_ context.Context, l *line) (driver.Driver, error) {
			return kafka.New(kafka.Options{Brokers: addresses, Namespace: namespace, ClientOptions: []kgo.Opt{kgo.Dialer(l.dial)}})
		},
		remove: func(ctx context.Context) error {
			client, err := kgo.NewClient(kgo.SeedBrokers(addresses...))
			if err != nil {
				return err
			}
			defer client.Close()
			admin := kadm.NewClient(client)
			topics, err := admin.ListTopics(ctx)
			if err != nil {
				return err
			}
			var ours []string
			for _, name := range topics.Names() {
				if strings.HasPrefix(name, namespace+".") {
					ours = append(ours, name)
				}
			}
			_, err = admin.DeleteTopics(ctx, ours...)
			return err
		},
	}, nil
}

func onRedis(context.Context) (*broker, error) {
	url := os.Getenv("REDIS_URL")
	if url == "" {
		return nil, nil
	}
	option, err := rueidis.ParseURL(url)
	if err != nil {
		return nil, fmt.Errorf("REDIS_URL: %w", err)
	}
	namespace := fmt.Sprintf("bounded-%d", time.Now().UnixNano())
	return &broker{
		name: "redis-streams",
		open: func(_ context.Context, l *line) (driver.Driver, error) {
			option.DialCtxFn = func(ctx context.Context, address string, _ *net.Dialer, _ *tls.Config) (net.Conn, error) {
				return l.dial(ctx, "tcp", address)
			}
			return streams.New(streams.Options{Client: option, Namespace: namespace})
		},
		remove: func(ctx context.Context) error {
			option.DialCtxFn = nil
			client, err := rueidis.NewClient(option)
			if err != nil {
				return err
			}
			defer client.Close()
			for cursor, more := uint64(0), true; more; more = cursor != 0 {
				page, err := client.Do(ctx, client.B().Scan().Cursor(cursor).Match(namespace+":*").Count(1000).Build()).AsScanEntry()
				if err != nil {
					return err
				}
				for _, key := range page.Elements {
					if err := client.Do(ctx, client.B().Unlink().Key(key).Build()).Error(); err != nil {
						return err
					}
				}
				cursor = page.Cursor
			}
			return nil
		},
	}, nil
}

func onPostgres(context.Context) (*broker, error) {
	url := os.Getenv("TIDINGS_POSTGRES_URL")
	if url == "" {
		return nil, nil
	}
	schema := fmt.Sprintf("bounded_%d", time.Now().UnixNano())
	return &broker{
		name: "postgres",
		open: func(ctx context.Context, l *line) (driver.Driver, error) {
			config, err := pgxpool.ParseConfig(url)
			if err != nil {
				return nil, err
			}
			config.MaxConns = 8
			config.ConnConfig.DialFunc = l.dial
			pool, err := pgxpool.NewWithConfig(ctx, config)
			if err != nil {
				return nil, err
			}
			context.AfterFunc(ctx, pool.Close)
			store, err := postgres.New(pool, &postgres.Options{Schema: schema})
			if err != nil {
				return nil, err
			}
			if err := store.Migrate(ctx); err != nil {
				return nil, err
			}
			return sqldb.New(sqldb.Options{Name: "postgres", Log: store.Log()})
		},
		remove: func(ctx context.Context) error {
			pool, err := pgxpool.New(ctx, url)
			if err != nil {
				return err
			}
			defer pool.Close()
			_, err = pool.Exec(ctx, "DROP SCHEMA IF EXISTS "+schema+" CASCADE")
			return err
		},
	}, nil
}
