//go:build unix

package guarantees

import (
	"context"
	"flag"
	"fmt"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/sns"
	"github.com/jackc/pgx/v5"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/driver/drivertest"
	"github.com/tidings-go/tidings/driver/drivertest/deployments"
	"github.com/tidings-go/tidings/driver/drivertest/faults"
	"github.com/tidings-go/tidings/driver/sqldb"
	"github.com/tidings-go/tidings/driver/sqs"
	"github.com/tidings-go/tidings/inbox"
	"github.com/tidings-go/tidings/outbox"
)

var patience = flag.Duration("patience", 0, "how long a deployment waits for what is sure to come; 0: the suite's own")

// calmLease is for leases, sessions and visibility where no process dies: nobody
// waits for their end, and a busy machine keeps them.
const calmLease = 10 * time.Second

// TestDeployments lets releases that differ follow each other on every durable
// driver: nothing is lost, out of order or done twice.
func TestDeployments(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var verdicts []deployments.Verdict
	worlds := slices.DeleteFunc(deploymentWorlds(), func(w deployments.World) bool { return *only != "" && w.Name != *only })
	begun := time.Now()
	t.Run("drivers", func(t *testing.T) {
		deployments.Run(t, deployments.Suite{Worlds: worlds, Short: !*long, Patience: *patience, AtOnce: 8}, func(v deployments.Verdict) {
			mu.Lock()
			defer mu.Unlock()
			verdicts = append(verdicts, v)
		})
	})
	if *page == "" {
		return
	}
	var names []string
	for _, w := range worlds {
		names = append(names, w.Name)
	}
	text := fmt.Sprintf("`%s`, %s, %s %s/%s with %d processors, in %v; %s.\n\n%s", *command, time.Now().Format("2006-01-02"), runtime.Version(), runtime.GOOS, runtime.GOARCH,
		runtime.NumCPU(), time.Since(begun).Round(time.Second), *versions, deployments.Table(names, verdicts))
	if err := faults.WriteSection(*page, "deployments", text); err != nil {
		t.Error(err)
	}
}

// deploymentWorlds are the durable drivers. Handlers write into the application's
// database: the bus's own on postgres and sqlite, a PostgreSQL beside the broker
// elsewhere.
func deploymentWorlds() []deployments.World {
	return []deployments.World{
		beside("kafka", func(t testing.TB) faults.Place {
			place := faults.Place{Namespace: newNamespace(), Broker: drivertest.Server(t, "KAFKA_BROKERS")}
			removeAfter(t, place, removeKafka)
			return place
		}, newKafka),
		beside("redis-streams", func(t testing.TB) faults.Place {
			place := faults.Place{Namespace: newNamespace(), Broker: drivertest.Server(t, "REDIS_URL")}
			removeAfter(t, place, removeKeys)
			return place
		}, newStreams),
		topics,
		queues,
		{Name: "postgres", Prepare: func(t testing.TB) deployments.Site {
			return databaseSite("postgres", newSchema(t, drivertest.Server(t, "TIDINGS_POSTGRES_URL")), onPostgresFew)
		}},
		{Name: "sqlite", Prepare: func(t testing.TB) deployments.Site {
			return databaseSite("sqlite", newFile(t, t.TempDir()), onFile)
		}},
	}
}

// topics are FIFO topics with a queue for each subscription, on fauxqs.
var topics = func() deployments.World {
	w := beside("sqs, topics", func(t testing.TB) faults.Place {
		place := faults.Place{Namespace: newNamespace(), Broker: drivertest.Server(t, "TIDINGS_FAUXQS_URL")}
		removeAfter(t, place, removeTopics)
		removeAfter(t, place, removeQueues)
		return place
	}, func(place faults.Place) (driver.Driver, error) {
		options := calmQueues(place)
		options.Topics = snsClient(place.Broker)
		return sqs.New(options)
	})
	const renamed = "SQS renames no queue: the former name reads its queue until it is empty and is deleted, then the new one begins"
	w.Not = map[string]string{"subscription renamed": renamed, "subscription renamed, rolled back": renamed}
	return w
}()

// calmQueues gives an event of an unknown type back for a shorter time than a canary
// runs: the record of what releases handle must keep it.
func calmQueues(place faults.Place) sqs.Options {
	return sqs.Options{
		Client: sqsClient(place.Broker), Namespace: strings.ReplaceAll(place.Namespace, "_", "-"), FIFO: true,
		VisibilityTimeout: place.Lease, PollWait: time.Second, UnhandledGrace: time.Second,
	}
}

// queues are FIFO queues that all subscriptions of a channel share, on ElasticMQ.
var queues = func() deployments.World {
	w := beside("sqs, a queue per channel", func(t testing.TB) faults.Place {
		place := faults.Place{Namespace: newNamespace(), Broker: drivertest.Server(t, "TIDINGS_ELASTICMQ_URL")}
		removeAfter(t, place, removeQueues)
		return place
	}, func(place faults.Place) (driver.Driver, error) { return sqs.New(calmQueues(place)) })
	w.Nameless = true
	return w
}()

func snsClient(url string) *sns.Client {
	return sns.New(sns.Options{
		BaseEndpoint: aws.String(url), Region: "us-east-1", RetryMaxAttempts: 1,
		Credentials: credentials.NewStaticCredentialsProvider("test", "test", ""),
		HTTPClient:  &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}},
	})
}

func removeTopics(t testing.TB, place faults.Place) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	client := snsClient(place.Broker)
	for pages := sns.NewListTopicsPaginator(client, &sns.ListTopicsInput{}); pages.HasMorePages(); {
		page, err := pages.NextPage(ctx)
		if err != nil {
			t.Log(err)
			return
		}
		for _, topic := range page.Topics {
			if !strings.Contains(aws.ToString(topic.TopicArn), ":"+strings.ReplaceAll(place.Namespace, "_", "-")+"-") {
				continue
			}
			if _, err := client.DeleteTopic(ctx, &sns.DeleteTopicInput{TopicArn: topic.TopicArn}); err != nil {
				t.Log(err)
			}
		}
	}
}

// beside is a broker whose handlers write into PostgreSQL.
func beside(name string, prepare func(testing.TB) faults.Place, open func(faults.Place) (driver.Driver, error)) deployments.World {
	return deployments.World{Name: name, Prepare: func(t testing.TB) deployments.Site {
		place := prepare(t)
		place.Lease = calmLease
		database := newSchema(t, drivertest.Server(t, "TIDINGS_POSTGRES_URL"))
		broker := place
		place.Namespace, place.Database = database.Namespace, database.Database
		return site(place, onPostgresFew, func(*application[pgx.Tx]) (driver.Driver, error) { return open(broker) })
	}}
}

// databaseSite is a database as the bus.
func databaseSite[TX any](name string, place faults.Place, open func(context.Context, faults.Place) (*application[TX], error)) deployments.Site {
	return site(place, open, func(a *application[TX]) (driver.Driver, error) {
		log, ok := a.store.(interface{ Log() outbox.Log })
		if !ok {
			return nil, fmt.Errorf("the store of %s has no log", name)
		}
		return sqldb.New(sqldb.Options{Name: name, Log: log.Log(), LeaseTime: calmLease, PollInterval: 100 * time.Millisecond})
	})
}

func site[TX any](place faults.Place, open func(context.Context, faults.Place) (*application[TX], error), connect func(*application[TX]) (driver.Driver, error)) deployments.Site {
	return deployments.Site{
		Open: func(ctx context.Context) (*deployments.Parts, error) {
			a, err := open(ctx, place)
			if err != nil {
				return nil, err
			}
			d, err := connect(a)
			if err != nil {
				a.close()
				return nil, err
			}
			return &deployments.Parts{
				Driver: d, Options: tidings.Options{Lanes: a.store.Lanes()}, Close: a.close,
				React: func(contract tidings.Contract[deployments.Payload]) tidings.Reaction {
					return inbox.On(a.store, contract, func(ctx context.Context, tx TX, e tidings.Event[deployments.Payload]) error {
						return a.in(tx)(ctx, insertEffect, e.ID())
					})
				},
			}, nil
		},
		Effects: func(ctx context.Context) (map[string]int, error) { return effectsOf(open)(ctx, place) },
	}
}

// onPostgresFew is onPostgres with a few connections: many instances are in one
// process here, and the server has a limit. Nothing falls silent here, so it waits.
func onPostgresFew(ctx context.Context, place faults.Place) (*application[pgx.Tx], error) {
	return onPostgresWith(ctx, place, 4, 30*time.Second)
}
