// node dist/main.js publish|consume kafka|sqs|redis
//
// publish says what INTEROP_EVENTS has, a JSON array of {form, userId, email, name};
// consume handles with two subscriptions until its standard input ends, and says
// what it handled, a line of JSON each.
import { DeleteMessageCommand, GetQueueUrlCommand, ReceiveMessageCommand, SQSClient } from '@aws-sdk/client-sqs'
import { Redis } from 'ioredis'
import { Kafka, logLevel } from 'kafkajs'
import { IdentityUserCreatedEvent, type EventPublisher } from './contracts.js'
import { OnUserCreatedHandler, parse, say } from './handlers.js'
import { KafkaEventPublisher, RedisEventPublisher, SQSEventPublisher } from './publishers.js'

const eventName = 'identity.user.created'
const [command, driver] = process.argv.slice(2)
const namespace = process.env.EVENT_NAMESPACE ?? ''

const kafka = () =>
  new Kafka({ clientId: 'interop', brokers: (process.env.KAFKA_BROKERS ?? '').split(','), logLevel: logLevel.NOTHING })
const redis = () => new Redis(process.env.REDIS_URL ?? '')
const sqs = () =>
  new SQSClient({ endpoint: process.env.AWS_ENDPOINT_URL, region: 'us-east-1', credentials: { accessKeyId: 'local', secretAccessKey: 'local' } })

async function queueUrl(client: SQSClient): Promise<string> {
  const found = await client.send(new GetQueueUrlCommand({ QueueName: `${namespace}-events-${eventName.replace(/\./g, '-')}` }))
  return found.QueueUrl ?? ''
}

async function publish(): Promise<void> {
  let publisher: EventPublisher
  let close: () => Promise<unknown> | void
  if (driver === 'kafka') {
    const producer = kafka().producer()
    await producer.connect()
    publisher = new KafkaEventPublisher(producer, `${namespace}.`)
    close = () => producer.disconnect()
  } else if (driver === 'sqs') {
    const client = sqs()
    const url = await queueUrl(client)
    publisher = new SQSEventPublisher(client, { resolve: () => url })
    close = () => client.destroy()
  } else {
    const client = redis()
    publisher = new RedisEventPublisher(client, `${namespace}:`)
    close = () => client.quit()
  }
  for (const { form, userId, email, name } of JSON.parse(process.env.INTEROP_EVENTS ?? '[]')) {
    const event = new IdentityUserCreatedEvent(userId, { userId, email, name })
    if (form === 'envelope') {
      await publisher.publish(event.eventType, { ...event })
    } else {
      await publisher.publish(event.eventType, event.payload)
    }
  }
  await close()
}

const subscriptions = ['billing.create-default-profile', 'notifications.welcome']

async function consume(): Promise<void> {
  const stopped = new Promise<void>((resolve) => process.stdin.on('end', resolve).resume())
  const closes: (() => Promise<unknown> | void)[] = []
  if (driver === 'kafka') {
    await Promise.all(
      subscriptions.map(async (subscription) => {
        const handler = new OnUserCreatedHandler(subscription)
        const consumer = kafka().consumer({ groupId: `${namespace}.typescript.${subscription}` })
        await consumer.connect()
        await consumer.subscribe({ topic: `${namespace}.events.${eventName.replace(/\./g, '-')}`, fromBeginning: true })
        const joined = new Promise<void>((resolve) => consumer.on(consumer.events.GROUP_JOIN, () => resolve()))
        await consumer.run({
          eachMessage: async ({ message }) => {
            const type = message.headers?.eventType?.toString() ?? ''
            await handler.handle(parse(type, message.value?.toString() ?? ''))
          },
        })
        await joined
        closes.push(() => consumer.disconnect())
      }),
    )
  } else if (driver === 'sqs') {
    // One queue: each message is for both, and deleted when both have it.
    const client = sqs()
    const url = await queueUrl(client)
    const handlers = subscriptions.map((subscription) => new OnUserCreatedHandler(subscription))
    let running = true
    const polling = (async () => {
      while (running) {
        const got = await client.send(
          new ReceiveMessageCommand({ QueueUrl: url, MaxNumberOfMessages: 10, WaitTimeSeconds: 1, MessageAttributeNames: ['All'] }),
        )
        for (const message of got.Messages ?? []) {
          const type = message.MessageAttributes?.eventType?.StringValue ?? ''
          for (const handler of handlers) {
            await handler.handle(parse(type, message.Body ?? ''))
          }
          await client.send(new DeleteMessageCommand({ QueueUrl: url, ReceiptHandle: message.ReceiptHandle }))
        }
      }
    })()
    closes.push(async () => {
      running = false
      await polling
      client.destroy()
    })
  } else {
    await Promise.all(
      subscriptions.map(async (subscription) => {
        const handler = new OnUserCreatedHandler(subscription)
        const client = redis()
        client.on('message', (channel: string, text: string) => {
          void handler.handle(parse(channel.slice(namespace.length + 1), text))
        })
        await client.subscribe(`${namespace}:${eventName}`)
        closes.push(() => client.quit())
      }),
    )
  }
  say({ ready: true })
  await stopped
  await Promise.all(closes.map((close) => close()))
}

await (command === 'publish' ? publish() : consume())
