package setup

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsconfig "github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/sns"
	awssqs "github.com/aws/aws-sdk-go-v2/service/sqs"

	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/driver/sqs"
)

func openSQS(config Config, options *Options, _ Database) (driver.Driver, []error) {
	var errs []error
	choice := func(variable, value string, byDefault bool) bool {
		if value == "" {
			return byDefault
		}
		chosen, err := strconv.ParseBool(value)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s is %q: true or false", variable, value))
		}
		return chosen
	}
	o := sqs.Options{Namespace: config.Namespace, FIFO: choice("SQS_FIFO", config.SQSFIFO, true)}
	topics := choice("SQS_TOPICS", config.SQSTopics, false)
	if config.SQSVisibilityTimeout != "" {
		timeout, err := time.ParseDuration(config.SQSVisibilityTimeout)
		if err != nil {
			errs = append(errs, fmt.Errorf("SQS_VISIBILITY_TIMEOUT is %q: a duration such as 30s", config.SQSVisibilityTimeout))
		}
		o.VisibilityTimeout = timeout
	}
	switch config.SQSProvision {
	case "", "missing":
	case "never":
		o.Provision = sqs.ProvisionNever
	default:
		errs = append(errs, fmt.Errorf("SQS_PROVISION is %q: missing or never", config.SQSProvision))
	}
	resolver, err := queueURLs(config.SQSQueueURLs)
	if err != nil {
		errs = append(errs, err)
	}
	o.QueueURL = resolver
	amazon, err := amazonConfig(config)
	if err != nil {
		return nil, append(errs, err)
	}
	o.Client = awssqs.NewFromConfig(amazon)
	if topics {
		o.Topics = sns.NewFromConfig(amazon)
	}
	if options.SQS != nil {
		options.SQS(&o)
	}
	d, err := sqs.New(o)
	if err != nil {
		return nil, append(errs, fmt.Errorf("EVENT_DRIVER=sqs (AWS_…, SQS_…, EVENT_NAMESPACE): %w", err))
	}
	return d, errs // New closes it where there are complaints
}

// queueURLs reads SQS_QUEUE_URLS.
func queueURLs(list string) (sqs.QueueURLResolver, error) {
	if list == "" {
		return nil, nil
	}
	queues := make(map[string]string)
	n := 0
	for pair := range strings.SplitSeq(list, ",") {
		n++
		eventType, queue, found := strings.Cut(strings.TrimSpace(pair), "=")
		u, err := url.Parse(queue)
		if !found || eventType == "" || err != nil || u.Host == "" || !strings.HasPrefix(u.Scheme, "http") {
			return nil, fmt.Errorf("SQS_QUEUE_URLS: %s is not event.type=https://…", unlessSecret(list, strings.TrimSpace(pair), n))
		}
		if u.User != nil || beyondHost(queue) {
			return nil, fmt.Errorf("SQS_QUEUE_URLS: the URL of pair %d has a user: credentials belong in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY", n)
		}
		queues[eventType] = queue
	}
	return func(_ context.Context, eventType string) (string, error) {
		if queue, ok := queues[eventType]; ok {
			return queue, nil
		}
		return queues["*"], nil
	}, nil
}

// unlessSecret is what a person wrote, for a complaint, unless the list may have a
// user and a password in it: a password with a comma lies in two pairs.
func unlessSecret(list, pair string, n int) string {
	if strings.Contains(list, "@") {
		return fmt.Sprintf("pair %d", n)
	}
	return strconv.Quote(pair)
}

// amazonConfig is the configuration of the machine with what the variables say. A
// server on this machine needs neither region nor credentials.
func amazonConfig(config Config) (aws.Config, error) {
	var load []func(*awsconfig.LoadOptions) error
	region := config.AWSRegion
	if config.AWSEndpointURL != "" {
		u, err := url.Parse(config.AWSEndpointURL)
		if err != nil || u.Host == "" || !strings.HasPrefix(u.Scheme, "http") {
			return aws.Config{}, errors.New("AWS_ENDPOINT_URL is not http://host:port or https://host")
		}
		if u.User != nil || beyondHost(config.AWSEndpointURL) {
			return aws.Config{}, errors.New("AWS_ENDPOINT_URL has a user: credentials belong in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
		}
		load = append(load, awsconfig.WithBaseEndpoint(config.AWSEndpointURL))
		if address := net.ParseIP(u.Hostname()); u.Hostname() == "localhost" || address != nil && address.IsLoopback() {
			if region == "" {
				region = "us-east-1"
			}
			if os.Getenv("AWS_ACCESS_KEY_ID") == "" {
				load = append(load, awsconfig.WithCredentialsProvider(credentials.NewStaticCredentialsProvider("local", "local", "")))
			}
		}
	}
	if region != "" {
		load = append(load, awsconfig.WithRegion(region))
	}
	amazon, err := awsconfig.LoadDefaultConfig(context.Background(), load...)
	if err != nil {
		return aws.Config{}, fmt.Errorf("AWS_…: the configuration of AWS: %w", err)
	}
	if amazon.Region == "" {
		return aws.Config{}, fmt.Errorf("EVENT_DRIVER is sqs and AWS_REGION %w: for example eu-central-1", errMissing)
	}
	return amazon, nil
}
